"""What training destroyed, measured in torch: base beside tuned model on the probe, on pairs, on own samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgeft.contract.data import Example
from edgeft.contract.forgetting import compare_losses, compare_pairs, compare_samples

from .held_out import soft_tokens
from .mixture import count, passes
from .objective import AnyObjective, Objective
from .reference import Reference, own_samples

if TYPE_CHECKING:
    from .record import Run

Lines = Sequence[Sequence[Example]]  # the windows of each line
LOGITS = 1 << 27  # numbers of one pass' logits, base and tuned each
SAMPLES, LENGTH, LEAST = 32, 128, 256  # own samples at most, tokens of each, and tokens of all at least
SHARE = 0.02  # of the tokens trained on: to write one and ask both models about it costs two to three of those


@dataclass
class Sums:
    """Sums over the tokens of each line, in nats."""

    tokens: list[int]
    tuned: list[float]
    base: list[float]
    kl: list[float]


@torch.no_grad()
def by_line(objective: Objective, reference: Reference | None, lines: Lines, tokens_per_pass: int) -> Sums:
    """Loss of the tuned model and of the base and KL(base || tuned), summed over each line; all 0 without a base."""
    model, training = objective.model, objective.model.training
    owner = {id(example): index for index, line in enumerate(lines) for example in line}
    sums = torch.zeros((3, len(lines)), dtype=torch.float64)
    model.eval()
    for part in passes([example for line in lines for example in line], _limit(objective, tokens_per_pass)):
        logits, targets = objective.logits(part)
        values = [nn.functional.cross_entropy(logits, targets, reduction="none")]
        if reference:
            before = reference.logits(part)[0]
            values += [nn.functional.cross_entropy(before, targets, reduction="none"), divergence(before, logits)]
        sizes = [count([example]) for example in part]
        for kind, value in enumerate(values):
            for example, piece in zip(part, value.double().cpu().split(sizes), strict=True):
                sums[kind, owner[id(example)]] += piece.sum()
    model.train(training)
    tuned, base, kl = sums.tolist()
    return Sums([count(line) for line in lines], tuned, base, kl)


def divergence(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    """KL(base || tuned) of each row of logits [n, vocabulary], in nats."""
    wanted = base.log_softmax(-1)
    return (wanted.exp() * (wanted - tuned.log_softmax(-1))).sum(-1)


def _limit(objective: Objective, tokens_per_pass: int) -> int:
    """Padded tokens of a pass whose logits stay small, whatever the vocabulary."""
    rows = int(objective.model.config.get_text_config().vocab_size)  # type: ignore[union-attr,operator]
    return min(tokens_per_pass, max(1, LOGITS // rows))


def measure_forgetting(run: Run, objective: AnyObjective, reference: Reference, tokens: int) -> dict[str, Any] | None:
    """What edgeft.json holds: on the probe and the pairs that were given, with no probe on the base's own samples.

    `tokens` were trained on, and bound what is spent on samples. None for classifiers and for models from scratch.
    """
    evaluation, limit = run.evaluation, run.job.settings.tokens_per_pass
    if not isinstance(objective, Objective) or not run.base.fingerprint:
        return None
    found: dict[str, Any] = {"forgetting": None, "probe": None, "own_samples": None, "pairs": None}
    if evaluation.probe:
        found |= on_probe(Path(run.job.probe), by_line(objective, reference, evaluation.probe, limit))
    else:
        samples, length = sample_sizes(tokens, run.base.context - soft_tokens(run.job.options))
        texts = own_samples(run.base, reference, samples, length, run.job.settings.seed)
        sums = by_line(objective, reference, [[text] for text in texts], limit)
        found["own_samples"] = compare_samples(sums.tokens, sums.kl) if texts else None
    if evaluation.pairs:
        found["pairs"] = on_pairs(Path(run.job.pairs), evaluation.pairs, objective, reference, limit)
    return found


def sample_sizes(tokens: int, context: int) -> tuple[int, int]:
    """(texts, tokens of each) that cost a few percent of a training on so many tokens, within bounds."""
    most = min(SAMPLES * LENGTH, max(LEAST, int(SHARE * tokens)))
    length = min(LENGTH, context, max(32, most // SAMPLES))
    return max(1, most // length), length


def on_probe(path: Path, sums: Sums) -> dict[str, Any]:
    """The record of a probe."""
    return {"probe": str(path.resolve()), **compare_losses(sums.tokens, sums.base, sums.tuned, sums.kl)}


def on_pairs(path: Path, sentences: Sequence[Example], objective: Objective, reference: Reference | None,
             tokens_per_pass: int) -> dict[str, Any]:
    """The record of grammar pairs."""
    sums = by_line(objective, reference, [[sentence] for sentence in sentences], tokens_per_pass)
    return compare_pairs(path, sums.base if reference else None, sums.tuned)
