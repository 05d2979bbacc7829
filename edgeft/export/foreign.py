"""PEFT folders that no plugin of ours reads: PEFT merges them into the base, and the difference is exported.

Whatever PEFT can fold into weights is right by construction, and the verification compares the bundle with PEFT
unmerged. A difference of small rank stands beside the base as `lowrank`; any other is merged or refused.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers.pytorch_utils import Conv1D

from edgeft.contract import BaseView, CannotLower, Lowered, Method
from edgeft.contract.artifact import Artifact
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.method import PEFT_HOUSEKEEPING
from edgeft.contract.peft_types import PEFT_TYPES, REFUSED_FIELDS, REFUSED_INITS
from edgeft.contract.slots import Array, Tensors

from .adapters import Learned, finite_tensors
from .base import Base
from .graph import untie
from .svd import factorize, rounding_noise

SMALL = 0.5  # an adapter may take this share of its layers' own weights; above it, merging is the better way
WAYS = ("Export with --merge, or compress it with --as-adapter --rank R.")
EMPTY: tuple[Any, ...] = (None, False, [], {}, "none", "")


@dataclass(frozen=True)
class Changes:
    """What differs from the base: the merged tensors by name, and which of the layers store [in, out]."""

    tensors: Tensors
    turned: frozenset[str]


@dataclass(frozen=True)
class ImportOptions:
    """How to find the changes again on other weights: those of the device's grid."""

    changes: Changes = dataclasses.field(metadata={"help": "On the float base."})
    again: Callable[[Mapping[str, Array]], Changes] = dataclasses.field(metadata={"help": "On given weights."})


class Imported(Method[ImportOptions]):
    """A PEFT type as the difference that it makes; `learned` are the changed tensors, merged."""

    summary = "A PEFT type without a plugin, as the difference that it makes."
    Options = ImportOptions

    def __init__(self, peft_type: str) -> None:
        self.name = peft_type.lower()  # type: ignore[misc]

    def attach(self, model: nn.Module, options: ImportOptions) -> nn.Module:
        raise UsageError(f"{self.name}: is imported from PEFT, not trained here.")

    def collect(self, model: nn.Module) -> Tensors:
        raise UsageError(f"{self.name}: is imported from PEFT, not trained here.")

    def lower(self, learned: Tensors, options: ImportOptions, base: BaseView) -> Lowered:
        linears = base.linears()
        others = sorted(name for name in learned if name.removesuffix(".weight") not in linears)
        if others:
            raise CannotLower(f"{self.name}: changes {others[0]} and {len(others) - 1} more tensors that are no linear "
                              "layer's weights, which no slot can hold", WAYS)
        weights = {name: base.tensor(name) for name in base.names()}
        changes = options.again(weights)
        lowered = Lowered()
        for name, after in changes.tensors.items():
            before = weights[name] if name in weights else base.tensor(name)
            module = name.removesuffix(".weight")
            noise = rounding_noise(before, after)
            change = (after - before).T if module in changes.turned else after - before
            found = factorize(change, noise=noise)
            if found.rank * sum(change.shape) > SMALL * change.size:
                raise CannotLower(f"{self.name}: its change of {module} has rank {found.rank} of {min(change.shape)}, "
                                  "so it is no smaller than the layer", WAYS)
            if found.rank:
                lowered.lowrank[module] = (found.a, found.b)
        return lowered

    def merge(self, name: str, weight: Array, learned: Tensors, options: ImportOptions) -> Array:
        return learned.get(name, weight)


def import_peft(artifact: Artifact, base: Base) -> Learned:
    """Any PEFT folder that PEFT can fold into weights; CannotLower names the type and the reason otherwise."""
    check(artifact)
    finite_tensors(artifact)
    changes = merged_changes(artifact, base)
    if not changes.tensors:
        raise EdgeftError(f"{artifact.folder}: changes no weight of this base. Was it trained?")

    def again(weights: Mapping[str, Array]) -> Changes:
        same = all(np.array_equal(array, base.weights[name]) for name, array in weights.items())
        return changes if same else merged_changes(artifact, base, weights)

    return Learned(artifact, Imported(artifact.peft_type), ImportOptions(changes, again), changes.tensors)


def check(artifact: Artifact) -> None:
    """Refuse by name what PEFT cannot fold into weights, or does not know at all."""
    kind, config = artifact.peft_type, artifact.peft_config
    fate = PEFT_TYPES.get(kind)
    if fate is None or kind not in PeftType.__members__:
        raise UsageError(f"{artifact.folder}: PEFT type {kind or 'missing'!r} is none that PEFT has "
                         f"({', '.join(sorted(PEFT_TYPES))}).")
    if not fate.merged:
        reason = fate.reason or "no plugin that reads it is installed"
        raise CannotLower(f"{artifact.folder}: {kind} cannot be exported: {reason}.")
    known = {item.name for item in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)])}
    for name, value in config.items():
        reason = REFUSED_FIELDS.get(kind, {}).get(name, "")
        if value in EMPTY or name in PEFT_HOUSEKEEPING:
            continue
        if name not in known:
            reason = "this version of PEFT does not know it"
        if name.startswith("init_"):
            reason = next((why for init, why in REFUSED_INITS.items() if re.match(init, str(value))), reason)
        if reason:
            raise CannotLower(f"{artifact.folder}: {kind} with {name}={value!r} cannot be exported: {reason}.")


def merged_changes(artifact: Artifact, base: Base, weights: Mapping[str, Array] | None = None) -> Changes:
    """The tensors of the base that PEFT's own merge changes, on the base's weights or on given ones."""
    model = base.load()
    untie(model)
    if weights is not None:
        _put(model, base, weights)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    turned = frozenset(name for name, module in model.named_modules() if isinstance(module, Conv1D))
    merged = _merge(artifact, model)
    after = merged.state_dict()
    odd = sorted(before.keys() ^ after.keys())
    if odd:
        raise CannotLower(f"{artifact.folder}: {artifact.peft_type}: once merged, the model has other tensors than its "
                          f"base ({odd[0]} and {len(odd) - 1} more).")
    return Changes({name: tensor.float().numpy() for name, tensor in after.items()
                    if not torch.equal(tensor, before[name])}, turned)


def _put(model: nn.Module, base: Base, weights: Mapping[str, Array]) -> None:
    """Other values into every weight, the untied head's too."""
    values = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    for name, source in base.tied.items():
        if name not in values and source in values:
            values[name] = values[source]
    model.load_state_dict(values, strict=False)


def _merge(artifact: Artifact, model: nn.Module) -> nn.Module:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            tuned = PeftModel.from_pretrained(cast(Any, model), str(artifact.folder), local_files_only=True).eval()
            result: Any = set_peft_model_state_dict(tuned, load_peft_weights(str(artifact.folder), device="cpu"))
        except Exception as error:  # each of PEFT's types has errors of its own
            raise EdgeftError(f"{artifact.folder}: PEFT cannot load it on this base ({_short(error)})") from None
        missing = next((str(item.message) for item in told if "missing adapter keys" in str(item.message)), "")
        if missing:  # PEFT goes on with whatever a tensor is born with
            raise EdgeftError(f"{artifact.folder}: cannot be used\n  {missing.splitlines()[0][:300]}\nSave it again.")
        lost = sorted(result.unexpected_keys)
        if lost:
            raise EdgeftError(f"{artifact.folder}: does not belong to this base\n  {lost[0]} and {len(lost) - 1} more: "
                              "the base has no such module\nName its own base with --base.")
        try:
            return cast(nn.Module, tuned.merge_and_unload())
        except Exception as error:
            raise CannotLower(f"{artifact.folder}: {artifact.peft_type}: PEFT cannot fold it into this base's weights "
                              f"({_short(error)}), and no slot can hold it.") from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
