"""The loss: cross-entropy on the tokens that carry loss, and the head computed for those alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from edgeft.contract.data import Example
from edgeft.contract.errors import EdgeftError

from . import processes
from .classify import ClassObjective, measure_classes
from .cross_entropy import summed_cross_entropy
from .mixture import count, passes

if TYPE_CHECKING:
    from .base import Base


class Objective:
    """Sum of the loss over a batch's completion tokens, for any causal language model.

    Prompts and padding carry no loss, so their logits are never computed: a hook hands only the hidden states
    that predict a completion token to the head. Rows are padded on the right, where a causal model cannot see
    it, so no mask is needed and attention takes its fast path. With `task` the model is told each example's task,
    and this one for an example of none.
    """

    def __init__(self, model: nn.Module, head: nn.Module | None, pad: int = 0, task: int | None = None) -> None:
        if head is None:
            raise EdgeftError("The base has no output embeddings: it is not a causal language model.")
        self.model, self.head, self.pad, self.task = model, head, pad, task

    @contextmanager
    def _only(self, keep: torch.Tensor) -> Iterator[None]:
        def select(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden = arguments[0]  # [batch, seq or longer by a soft prompt, hidden]
            return (hidden[:, -keep.shape[1]:][keep].unsqueeze(0), *arguments[1:])

        handle = self.head.register_forward_pre_hook(select)
        try:
            yield
        finally:
            handle.remove()

    def _tasks(self, examples: Sequence[Example], device: torch.device) -> dict[str, torch.Tensor]:
        if self.task is None:
            return {}
        tasks = [self.task if example.task is None else example.task for example in examples]
        return {"task_ids": torch.tensor(tasks, device=device)}

    def _logits(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [n, vocabulary] of the tokens that carry loss, in the model's own precision, and their ids [n]."""
        device = next(self.model.parameters()).device
        width = max(len(example.ids) for example in examples)
        ids = torch.full((len(examples), width), self.pad)
        learn = torch.zeros((len(examples), width), dtype=torch.bool)
        for row, example in enumerate(examples):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            learn[row, : len(example.mask)] = torch.tensor(example.mask)
        keep = torch.zeros_like(learn)
        keep[:, :-1] = learn[:, 1:]
        targets = ids[:, 1:][keep[:, :-1]].to(device)
        with self._only(keep.to(device)):
            logits = self.model(input_ids=ids.to(device), use_cache=False, **self._tasks(examples, device)).logits
        return logits[0], targets

    def logits(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """One padded pass: logits [n, vocabulary] of the tokens that carry loss, row by row, and their ids [n]."""
        logits, targets = self._logits(examples)
        return logits.float(), targets

    def __call__(self, examples: Sequence[Example]) -> torch.Tensor:
        """Summed negative log-likelihood in nats of one padded pass."""
        return summed_cross_entropy(*self._logits(examples))


@torch.no_grad()  # and not inference_mode, whose tensors a sharded model could not train with afterwards
def mean_loss(objective: Objective, examples: Sequence[Example], tokens_per_pass: int) -> tuple[float, int]:
    """(nats per token that carries loss, how many such tokens)."""
    training = objective.model.training
    objective.model.eval()
    total = 0.0
    for part, counts in processes.share_of(passes(examples, tokens_per_pass)):
        total += counts * float(objective(part))
    objective.model.train(training)
    (total,), tokens = processes.total(total), count(examples)
    return total / max(tokens, 1), tokens


AnyObjective: TypeAlias = Objective | ClassObjective


def make_objective(base: Base, model: nn.Module, task: int | None = None) -> AnyObjective:
    """What is minimised on this base: cross-entropy over labels for a classifier, over tokens otherwise."""
    if base.labels:
        return ClassObjective(model, pad=base.model.config.pad_token_id)
    return Objective(model, base.model.get_output_embeddings(), pad=base.eos or 0, task=task)


def measure(objective: AnyObjective, examples: Sequence[Example], tokens_per_pass: int) -> dict[str, Any]:
    """Mean loss in nats with the number of tokens, or of examples and their accuracy for a classifier."""
    if isinstance(objective, ClassObjective):
        return measure_classes(objective, examples, tokens_per_pass)
    loss, tokens = mean_loss(objective, examples, tokens_per_pass)
    return {"loss": loss, "tokens": tokens}
