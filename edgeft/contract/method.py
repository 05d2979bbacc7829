"""A fine-tuning method: how it attaches to a model in torch, and how what it learned lowers to slots."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from .errors import CannotLower
from .slots import Array, BaseView, Lowered, Tensors

if TYPE_CHECKING:
    from torch import nn

OptionsT = TypeVar("OptionsT")
# adapter_config.json fields that say where an adapter comes from, not what it computes
PEFT_HOUSEKEEPING = {"peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping",
                     "peft_version"}


class Method(ABC, Generic[OptionsT]):
    """One fine-tuning method; stateless, one file in plugins/.

    The train face imports torch inside its functions; the export face is numpy only. Modules carry the names
    of the base's Hugging Face weights, e.g. `model.layers.3.self_attn.q_proj`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: type[OptionsT]  # frozen dataclass; each field has a default and metadata={"help": ...}
    peft_type: ClassVar[str] = ""  # the `peft_type` of PEFT folders that this method reads, e.g. "LORA"
    # at a hidden size of 2,048; training scales it by 2048 / hidden unless --learning-rate says otherwise
    learning_rate: ClassVar[float] = 2e-4
    # what edgeft.testing allows in the logits where its own bound is too tight: {"merge": (1e-4, "the reason")}
    tolerances: ClassVar[Mapping[str, tuple[float, str]]] = {}

    @abstractmethod
    def attach(self, model: nn.Module, options: OptionsT) -> nn.Module:
        """Put the trainable parameters in place, freeze all else, and return the model to train."""

    def peft_task(self, model: nn.Module) -> dict[str, Any]:
        """What a PEFT config says of the model's task, for `attach`: task_type, and a classifier's new modules."""
        new = getattr(model, "new_modules", None)
        return {"task_type": "CAUSAL_LM"} if new is None else {"task_type": "SEQ_CLS", "modules_to_save": list(new)}

    def check_named(self, option: str, names: Collection[str], modules: Collection[str]) -> None:
        """Say on stderr which names, or regular expressions, are the end of no module's name, as PEFT takes it.

        One list often serves several architectures; CannotLower where none of its names is there.
        """
        lost = [name for name in names
                if not any(re.fullmatch(rf"(.*\.)?({name})", module) for module in modules)]
        if not lost:
            return
        reason = f"{self.name}: {option} names what no layer of this base is called: {', '.join(lost)}"
        here = f"Layers here: {', '.join(sorted({module.rpartition('.')[2] for module in modules}))}."
        if len(lost) == len(names):
            raise CannotLower(reason, here)
        print(f"{reason}; the other names are trained. {here}", file=sys.stderr, flush=True)

    def finish(self, model: nn.Module) -> None:
        """Training has ended: turn the attached model, in place, into what is saved. By default it is that already."""

    @abstractmethod
    def collect(self, model: nn.Module) -> Tensors:
        """Return what was learned, named after base modules, as arrays on the CPU."""

    @abstractmethod
    def lower(self, learned: Tensors, options: OptionsT, base: BaseView) -> Lowered:
        """Express what was learned as slots; raise CannotLower(reason, way_out) if that cannot be done."""

    def read_peft(self, config: Mapping[str, Any]) -> OptionsT:
        """Options out of a PEFT folder's adapter_config.json, for methods with a `peft_type`.

        A field that Options does not have must be empty; otherwise CannotLower names it: an unknown field may
        change the arithmetic.
        """
        from edgeft.options import resolve

        known = set(getattr(self.Options, "__dataclass_fields__", ()))
        unknown = {key: value for key, value in config.items()
                   if key not in known | PEFT_HOUSEKEEPING and value not in (None, False, [], {}, "none")}
        if unknown:
            raise CannotLower(f"{self.name}: does not know {', '.join(f'{k}={v!r}' for k, v in unknown.items())}",
                              "Merge it in PEFT (merge_and_unload) and export the model folder.")
        return resolve(self.Options, {key: value for key, value in config.items() if key in known}, who=self.name)

    def merge(self, name: str, weight: Array, learned: Tensors, options: OptionsT) -> Array:
        """Return one base weight with its change folded in; the weight itself where nothing changed.

        The default folds what `lowrank` and `scale` say into `<module>.weight` [out, in] and scales
        `<module>.bias`. It sees one tensor at a time, so a base of any size can be streamed.
        """
        module, _, kind = name.rpartition(".")
        lowered = self.lower(learned, options, _OneTensor(name, weight))
        if lowered.prefix:
            raise CannotLower(f"{self.name}: a prefix cannot be folded into weights", "Export without --merge.")
        if kind == "weight" and module in lowered.lowrank:
            a, b = lowered.lowrank[module]
            weight = weight + (a @ b).T
        if kind in ("weight", "bias") and module in lowered.scale:
            scale = lowered.scale[module]
            weight = weight * (scale[:, None] if weight.ndim == 2 else scale)
        return weight


class _OneTensor(BaseView):
    """The base as `merge` sees it: one tensor."""

    def __init__(self, name: str, weight: Array) -> None:
        self._name, self._weight = name, weight

    @property
    def config(self) -> Mapping[str, Any]:
        return {}

    def names(self) -> Collection[str]:
        return [self._name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensor(name).shape

    def tensor(self, name: str) -> Array:
        if name != self._name:
            raise CannotLower(f"merging {self._name} needs {name}, and merge sees one tensor at a time",
                              "The method must bring its own merge().")
        return self._weight

    def linears(self) -> Mapping[str, tuple[int, int]]:
        if self._name.endswith(".weight") and self._weight.ndim == 2:
            return {self._name.removesuffix(".weight"): (self._weight.shape[1], self._weight.shape[0])}
        return {}

    def keys_values(self, embeddings: Array) -> dict[int, tuple[Array, Array]]:
        raise CannotLower("merging cannot run the base", "Export without --merge.")
