"""Limits on forgetting while training: KL to the base, distance from the start, interpolation with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edgeft.contract.data import Example
from edgeft.contract.errors import UsageError

from . import processes
from .base import Base
from .checkpoint import trainable
from .classify import head_parameters
from .forgetting import divergence
from .objective import AnyObjective, Objective
from .reference import Reference
from .settings import TrainSettings
from .shard import whole


class Limits:
    """What a run was told to stay near, and how near; made before a checkpoint's weights come back."""

    def __init__(self, settings: TrainSettings, base: Base, model: nn.Module, reference: Reference,
                 method: str) -> None:
        self.settings, self.reference = settings, reference
        _refuse(settings, base, model, method)
        held = settings.l2_to_start > 0 or settings.interpolate < 1
        new = {id(parameter) for parameter in head_parameters(base.model).values()}
        self.start = [(parameter, parameter.detach().clone()) for parameter in trainable(model).values()
                      if id(parameter) not in new] if held else []
        self.kl = 0.0  # nats, summed since the last report

    def loss(self, objective: AnyObjective, part: Sequence[Example],
             counts: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """(what is minimised, the task's own loss) of one padded pass, both summed over its tokens, times `counts`."""
        if not self.settings.kl_to_base or not isinstance(objective, Objective):
            loss = counts * objective(part)
            return loss, loss.detach()
        before, _ = self.reference.logits(part)
        logits, targets = objective.logits(part)
        loss = counts * nn.functional.cross_entropy(logits, targets, reduction="sum")
        kl = counts * divergence(before, logits).sum()
        self.kl += float(kl.detach())
        return loss + self.settings.kl_to_base * kl, loss.detach()

    def pull(self) -> None:
        """Add the gradient of the distance to the start, before gradients are clipped."""
        if self.settings.l2_to_start:
            for parameter, start in self.start:
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - start, alpha=2 * self.settings.l2_to_start)

    def report(self, tokens: int) -> dict[str, float]:
        """For metrics.jsonl: KL per token since the last report, and the distance from the start."""
        found = {}
        if self.settings.kl_to_base:
            found["kl"], self.kl = round(processes.total(self.kl)[0] / tokens, 5), 0.0
        if self.settings.l2_to_start:
            found["distance"] = round(self._distance(), 5)
        return found

    def _distance(self) -> float:
        return sum(float(whole((parameter.detach() - start).square().sum()))
                   for parameter, start in self.start) ** 0.5

    @torch.no_grad()
    def interpolate(self) -> None:
        """Training has ended: go back part of the way (https://arxiv.org/abs/2109.01903)."""
        if self.settings.interpolate < 1:
            for parameter, start in self.start:
                parameter.copy_(start + self.settings.interpolate * (parameter - start))


def _refuse(settings: TrainSettings, base: Base, model: nn.Module, method: str) -> None:
    """UsageError names the limit that this method or base cannot keep."""
    own = {id(parameter) for parameter in base.model.parameters()}
    adapter = hasattr(model, "peft_config") or any(id(value) not in own for value in trainable(model).values())
    asked = {"--kl-to-base": settings.kl_to_base, "--l2-to-start": settings.l2_to_start,
             "--interpolate": settings.interpolate < 1}
    for name in (name for name, value in asked.items() if value):
        if not base.fingerprint:
            raise UsageError(f"{name}: the base has no weights yet; there is nothing to stay near.")
        if name == "--kl-to-base" and base.labels:
            raise UsageError(f"{name}: is for language models; a classifier's labels are new to its base.")
        if name != "--kl-to-base" and adapter:
            raise UsageError(f"{name}: {method} leaves the base's weights as they are. Give its adapter a lower scale "
                             "when it runs (--adapter NAME:0.5), or train with --kl-to-base or --replay.")
