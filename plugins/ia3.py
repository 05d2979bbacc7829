"""IA3 (Liu et al. 2022, https://arxiv.org/abs/2205.05638) on PEFT: one learned factor per feature of some layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeft.contract import BaseView, CannotLower, Lowered, Method
from edgeft.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


def _option(default: Any, help: str, *flags: str) -> Any:
    return field(default=default, metadata={"help": help, "flags": flags})


@dataclass(frozen=True)
class Ia3Options:
    """Named as in PEFT's IA3Config."""

    target_modules: tuple[str, ...] = _option((), "Names of the layers; by default keys, values and the layer that "
                                                  "leaves the feed-forward block.")
    exclude_modules: tuple[str, ...] = _option((), "Layers to leave out.")
    feedforward_modules: tuple[str, ...] = _option((), "Those of them whose input is scaled instead of their output.")
    fan_in_fan_out: bool = _option(False, "The base stores its weights as [in, out] (gpt2); found by itself.")


# For architectures that PEFT has no default for: the names that nearly all decoders use today
_TARGETS, _FEEDFORWARD = ["k_proj", "v_proj", "down_proj"], ["down_proj"]


class Ia3(Method[Ia3Options]):
    """y = base(x) * l, and base(x * l) for feed-forward layers."""

    name = "ia3"
    summary = "IA3: learned factors on keys, values and the feed-forward block; the smallest of all."
    Options = Ia3Options
    peft_type = "IA3"
    learning_rate = 1e-3

    def attach(self, model: nn.Module, options: Ia3Options) -> nn.Module:
        from peft import IA3Config, get_peft_model
        from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

        base: Any = model
        given: dict[str, Any] = {name: list(value) if isinstance(value, tuple) else value
                                 for name, value in vars(options).items() if value not in ((), False)}
        if not options.target_modules and base.config.model_type not in KNOWN:
            given |= {"target_modules": _TARGETS, "feedforward_modules": _FEEDFORWARD}
        if options.target_modules:  # PEFT would add its own, and then not load what it saved
            given.setdefault("feedforward_modules", [])
        try:
            tuned = get_peft_model(base, IA3Config(**given, **self.peft_task(model)))
        except ValueError as error:
            raise CannotLower(f"ia3: {str(error).splitlines()[0]}", "Name layers of this base with "
                              "--target-modules.") from None
        adapted = [name.removeprefix("base_model.model.") for name, layer in tuned.named_modules()
                   if "default" in getattr(layer, "ia3_l", {})]
        for option in ("target_modules", "feedforward_modules"):
            self.check_named(option, getattr(options, option), adapted)
        return tuned

    def collect(self, model: nn.Module) -> dict[str, Any]:
        from peft import get_peft_model_state_dict

        return {name.removeprefix("base_model.model."): tensor.float().cpu().numpy()
                for name, tensor in get_peft_model_state_dict(model).items()}

    def read_peft(self, config: Mapping[str, Any]) -> Ia3Options:
        found = {**config, "init_ia3_weights": None, "modules_to_save": None}  # those show in the tensors
        for name in ("target_modules", "exclude_modules", "feedforward_modules"):
            if isinstance(config.get(name), str):
                found[name] = [config[name]]
        return super().read_peft(found)

    def lower(self, learned: dict[str, Any], options: Ia3Options, base: BaseView) -> Lowered:
        lowered, linears = Lowered(), base.linears()
        for key, factors in learned.items():
            module, _, kind = key.rpartition(".")
            if kind != "ia3_l":
                raise CannotLower(f"ia3: {key} is no factor of IA3, so it would be lost", "Export with --merge.")
            factors = _through_gate(module, factors[0], linears, lowered) if factors.shape[0] == 1 \
                else factors.reshape(-1)
            place = lowered.moved.get(module, module)
            lowered.scale[place] = lowered.scale[place] * factors if place in lowered.scale else factors
        return lowered

    def merge(self, name: str, weight: Any, learned: dict[str, Any], options: Ia3Options) -> Any:
        if name in learned:  # modules_to_save: trained whole
            return learned[name]
        module, _, kind = name.rpartition(".")
        factors = learned.get(f"{module}.ia3_l")
        if factors is None:
            return weight
        if kind == "bias":  # of a feed-forward layer it is added to what was scaled before
            return weight if factors.shape[0] == 1 else weight * factors.reshape(-1)
        return weight * (factors.T if options.fan_in_fan_out else factors)


def _through_gate(module: str, factors: Any, linears: Mapping[str, tuple[int, int]], lowered: Lowered) -> Any:
    """Factors on the input of a gated block's last layer act as well on the output of its `up` layer.

    down((act(gate) * up) * l) = down(act(gate) * (up * l)), so the `scale` slot of `up` holds them exactly.
    """
    import numpy as np

    block, _, last = module.rpartition(".")
    if last == "down_proj" and f"{block}.gate_proj" in linears and f"{block}.up_proj" in linears:
        lowered.moved[module] = f"{block}.up_proj"
        return factors
    if last == "down_proj" and f"{block}.gate_up_proj" in linears:  # phi3: both in one, the gate first
        lowered.moved[module] = f"{block}.gate_up_proj"
        return np.concatenate([np.ones_like(factors), factors])
    raise CannotLower(f"ia3: {module} has its input scaled, and no slot acts on inputs", "Export with --merge.")


@hookimpl
def register_methods(register: Any) -> None:
    register(Ia3())
