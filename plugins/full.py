"""Full tuning: every weight of the base learns; also pre-training, from a config alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeft.contract import BaseView, CannotLower, Lowered, Method
from edgeft.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class FullOptions:
    """Which part of the base learns."""

    freeze_embeddings: bool = field(default=False, metadata={"help": "Keep the token embeddings as they are."})


class Full(Method[FullOptions]):
    """Every weight learns."""

    name = "full"
    summary = "Full tuning: every weight learns; from a config alone it is pre-training."
    Options = FullOptions
    learning_rate = 5e-5

    def attach(self, model: nn.Module, options: FullOptions) -> nn.Module:
        model.requires_grad_(True)
        if options.freeze_embeddings:
            embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
            embeddings.requires_grad_(False)
        return model

    def collect(self, model: nn.Module) -> dict[str, Any]:
        return {name: parameter.detach().float().cpu().numpy()  # a tied head under its own name too: it is merged so
                for name, parameter in model.named_parameters(remove_duplicate=False)}

    def lower(self, learned: dict[str, Any], options: FullOptions, base: BaseView) -> Lowered:
        raise CannotLower("full tuning changes every weight, and a device's slots hold small changes only",
                          "Export the run as a model of its own: `edgeft export RUN --merge`.")

    def merge(self, name: str, weight: Any, learned: dict[str, Any], options: FullOptions) -> Any:
        return learned.get(name, weight)


@hookimpl
def register_methods(register: Any) -> None:
    register(Full())
