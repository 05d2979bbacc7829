"""BitFit (Ben Zaken et al. 2021, https://arxiv.org/abs/2106.10199): only the biases of the base learn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgeft.contract import BaseView, CannotLower, Lowered, Method
from edgeft.hookspecs import hookimpl


@dataclass(frozen=True)
class BitFitOptions:
    """Which biases learn."""

    layers: tuple[str, ...] = field(default=(), metadata={
        "help": "Only biases of layers of these names; all biases if none is given."})


class BitFit(Method[BitFitOptions]):
    """Every bias learns, every other weight is frozen."""

    name = "bitfit"
    summary = "BitFit: only the biases learn; for bases that have some, exported with --merge."
    Options = BitFitOptions
    learning_rate = 1e-3

    def attach(self, model: Any, options: BitFitOptions) -> Any:
        model.requires_grad_(False)
        biases = {name: parameter for name, parameter in model.named_parameters() if name.endswith(".bias")}
        chosen = [parameter for name, parameter in biases.items()
                  if not options.layers or name.split(".")[-2] in options.layers]
        if not chosen:
            found = ", ".join(sorted({name.split(".")[-2] for name in biases}))
            raise CannotLower(
                f"bitfit: no layer named {', '.join(options.layers)} has a bias; those that do are {found}" if biases
                else "bitfit: this base has no biases",
                "Choose among them with --layers." if biases
                else "Take a base that has some (Qwen2, GPT-2, OPT, BERT), or another method: `edgeft methods`.")
        for parameter in chosen:
            parameter.requires_grad_(True)
        return model

    def collect(self, model: Any) -> dict[str, Any]:
        return {name: parameter.detach().float().cpu().numpy() for name, parameter in model.named_parameters()
                if parameter.requires_grad}

    def lower(self, learned: dict[str, Any], options: BitFitOptions, base: BaseView) -> Lowered:
        raise CannotLower("bitfit: no slot beside a base holds a bias", "Export with --merge.")

    def merge(self, name: str, weight: Any, learned: dict[str, Any], options: BitFitOptions) -> Any:
        return learned.get(name, weight)


@hookimpl
def register_methods(register: Any) -> None:
    register(BitFit())
