"""Where and how training computes: the device, bfloat16, split weights, compiled layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from edgeft.contract.errors import EdgeftError

from . import processes
from .base import Base
from .checkpoint import trainable
from .record import say
from .settings import TrainSettings
from .shard import layers_of, shard


@dataclass(frozen=True)
class Compute:
    """The device of this process, and what it is told to do there."""

    device: torch.device
    half: bool  # matrix products in bfloat16
    sharded: bool
    compiled: bool

    def autocast(self) -> torch.autocast:
        """Products in bfloat16, where they are wanted."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)


def compute_on(device: torch.device, settings: TrainSettings) -> Compute:
    """As the settings say."""
    half = settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")
    sharded = settings.shard and processes.count() > 1
    if settings.shard and not sharded:
        say("note: --shard splits weights over several processes, and this is one: nothing is split")
    return Compute(device, half, sharded, settings.compile)


def settle(model: nn.Module, compute: Compute) -> None:
    """What learns does so in float32; on a GPU what is frozen is kept in bfloat16, after all rounding to a grid.

    Not called for a base on a grid: bfloat16 would move its weights off it.
    """
    half = compute.device.type == "cuda" and compute.half
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16() if half and not parameter.requires_grad else parameter.data.float()


def place(model: nn.Module, base: Base, compute: Compute) -> None:
    """Put the model where it computes, whole or split, to be called as any model is."""
    if compute.compiled:
        for layer in layers_of(base.model):  # one by one: what hooks do between them stays plain Python
            layer.forward = torch.compile(layer.forward, dynamic=True)
    if compute.half:  # for evaluation too
        model.forward = compute.autocast()(model.forward)
    processes.equal_start(trainable(model).values())
    if compute.sharded:
        shard(model, base.model, compute.device)
    else:
        model.to(compute.device)


@contextmanager
def compile_errors(settings: TrainSettings) -> Iterator[None]:
    """A compiler that is missing or fails is one message."""
    try:
        yield
    except Exception as error:
        if not settings.compile or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        text = " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])
        raise EdgeftError(f"--compile: torch.compile failed ({text[:300]}). Train without --compile.") from None
