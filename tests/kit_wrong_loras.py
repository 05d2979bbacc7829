"""LoRA with one deliberate fault each, for the kit to judge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from edgeft_plugins.lora import Lora, LoraOptions

from edgeft.contract import CannotLower, Lowered
from edgeft.hookspecs import hookimpl
from tests.kit_subjects import FRESH, FROZEN, LOWER, MERGE, SAVE, TRAINED, UNLOADED, WRONG, breaks


@breaks(LOWER)
class LowerForgetsTheScaling(Lora):
    def lower(self, learned: Any, options: Any, base: Any) -> Lowered:
        return super().lower(learned, replace(options, lora_alpha=options.r), base)


@breaks(LOWER)
class LowerLosesALayer(Lora):
    def lower(self, learned: Any, options: Any, base: Any) -> Lowered:
        pairs = super().lower(learned, options, base).lowrank
        return Lowered(lowrank={name: pair for name, pair in pairs.items() if name != max(pairs)})


@breaks(LOWER)
class LowerTurnsAAround(Lora):
    def lower(self, learned: Any, options: Any, base: Any) -> Lowered:
        pairs = super().lower(learned, options, base).lowrank
        return Lowered(lowrank={name: (a.T, b) for name, (a, b) in pairs.items()})


@breaks(LOWER)
class LowerNamesNoLayer(Lora):
    def lower(self, learned: Any, options: Any, base: Any) -> Lowered:
        pairs = super().lower(learned, options, base).lowrank
        return Lowered(lowrank={f"model.{name}": pair for name, pair in pairs.items()})


@breaks(LOWER)
class LowerReturnsNothing(Lora):
    def lower(self, learned: Any, options: Any, base: Any) -> Lowered:
        return Lowered()


@breaks(LOWER)
class LowerWritesIntoWhatItIsGiven(Lora):
    def lower(self, learned: Any, options: Any, base: Any) -> Lowered:
        for array in learned.values():
            array *= 1
        return super().lower(learned, options, base)


@breaks(LOWER)
class LowerShowsNoWayOut(Lora):
    def lower(self, learned: Any, options: Any, base: Any) -> Lowered:
        raise CannotLower("no")


@breaks(MERGE)
class MergeFoldsHalf(Lora):
    def merge(self, name: str, weight: Any, learned: Any, options: Any) -> Any:
        return (weight + super().merge(name, weight, learned, options)) / 2


@breaks(MERGE)
class MergeDoesNothing(Lora):
    def merge(self, name: str, weight: Any, learned: Any, options: Any) -> Any:
        return weight


@breaks(MERGE)
class MergeTurnsWeightsAround(Lora):
    def merge(self, name: str, weight: Any, learned: Any, options: Any) -> Any:
        return super().merge(name, weight, learned, options).T


@breaks(MERGE)
class MergeWritesIntoTheBase(Lora):
    def merge(self, name: str, weight: Any, learned: Any, options: Any) -> Any:
        weight *= 1
        return super().merge(name, weight, learned, options)


@breaks(SAVE)
class CollectLosesATensor(Lora):
    def collect(self, model: Any) -> dict[str, Any]:
        found = super().collect(model)
        return {name: array for name, array in found.items() if name != max(found)}


@breaks(SAVE)
class CollectRounds(Lora):
    def collect(self, model: Any) -> dict[str, Any]:
        return {name: array.astype(np.float16).astype(np.float32) for name, array in super().collect(model).items()}


@breaks(SAVE)
class CollectReturnsTorch(Lora):
    def collect(self, model: Any) -> dict[str, Any]:
        import torch

        return {name: torch.tensor(array) for name, array in super().collect(model).items()}


@breaks(SAVE)
class FinishChangesTheAnswers(Lora):
    def finish(self, model: Any) -> None:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.mul_(0.9)


@breaks(FRESH)
class AttachStartsAtRandom(Lora):
    def attach(self, model: Any, options: Any) -> Any:
        import torch

        attached = super().attach(model, options)
        for name, parameter in attached.named_parameters():
            if "lora_B" in name:
                parameter.data.copy_(torch.randn_like(parameter) * 0.1)
        return attached


@breaks(TRAINED)
class AttachLeavesNothingToTrain(Lora):
    def attach(self, model: Any, options: Any) -> Any:
        return super().attach(model, options).requires_grad_(False)


@breaks(FROZEN)
class AttachFreezesNothing(Lora):
    def attach(self, model: Any, options: Any) -> Any:
        return super().attach(model, options).requires_grad_(True)


@breaks(UNLOADED)
class AttachKeepsTheLastModel(Lora):
    last: Any = None

    def attach(self, model: Any, options: Any) -> Any:
        attached = super().attach(model, options)
        if self.last is not None:
            attached.load_state_dict(self.last.state_dict())
        self.last = attached
        return attached


@breaks(LOWER | MERGE)
class ReadPeftForgetsTheScaling(Lora):
    def read_peft(self, config: Any) -> LoraOptions:
        return super().read_peft({**config, "lora_alpha": 1.0})


@hookimpl
def register_methods(register: Any) -> None:
    for kind in WRONG:
        if kind.__module__ == __name__:
            register(kind())
