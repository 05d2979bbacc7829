"""Every batch of a run, planned up front: how much of each task an epoch draws, in which order.

The plan depends on the seed alone, so a resumed run meets the same batches without replaying any data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .mixture import Task, count
from .settings import TrainSettings

Ref = tuple[int, int]  # task, example
Plan = list[list[Ref]]


def per_epoch(tasks: Sequence[Task], settings: TrainSettings) -> list[int]:
    """Examples that one epoch draws from each task; together as many as the tasks hold, counted by weight.

    A task of n examples has the share weight * min(n, limit) ^ (1 / T): T = 1 is proportional, T = inf equal
    (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, 3.5.2).
    """
    power = {"proportional": 1.0, "equal": 0.0, "temperature": 1 / settings.sampling_temperature}[settings.sampling]
    limit = settings.sampling_limit or max(len(task.train) for task in tasks)
    rates = np.array([task.spec.weight * min(len(task.train), limit) ** power for task in tasks])
    total = sum(task.spec.weight * len(task.train) for task in tasks)
    return [max(1, round(wanted)) for wanted in (total * rates / rates.sum()).tolist()]


def plan_batches(tasks: Sequence[Task], settings: TrainSettings) -> Plan:
    """Every batch of the run. Lines of like length share a batch where they are near each other in the shuffle."""
    rng = np.random.Generator(np.random.PCG64(settings.seed))
    size, draws = settings.batch_size, per_epoch(tasks, settings)
    wanted = settings.max_steps * size if settings.max_steps else max(1, round(settings.epochs * sum(draws)))
    decks = [_Deck(len(task.train), rng) for task in tasks]
    refs: list[Ref] = []
    while len(refs) < wanted:
        epoch = [(index, line) for index, deck in enumerate(decks) for line in deck.draw(draws[index])]
        refs += [epoch[position] for position in rng.permutation(len(epoch))]
    del refs[wanted:]
    window = 16 * size
    batches: Plan = []
    for start in range(0, len(refs), window):
        near = sorted(refs[start : start + window], key=lambda ref: len(tasks[ref[0]].train[ref[1]].ids))
        cut = [near[at : at + size] for at in range(0, len(near), size)]
        batches += [cut[position] for position in rng.permutation(len(cut))]
    return batches


def add_replay(plan: Plan, tasks: Sequence[Task], settings: TrainSettings) -> Plan:
    """The same batches with examples of the replay task beside them, spread evenly over the run.

    As many as bring its share of all tokens with loss nearest to what was asked for, at every step.
    """
    index = next((index for index, task in enumerate(tasks) if task.replay), None)
    if index is None:
        return plan
    sizes = [[count([example]) for example in task.train] for task in tasks]
    rng = np.random.Generator(np.random.PCG64([settings.seed, 1]))  # of its own: the other tasks' order stays
    deck, odds = _Deck(len(tasks[index].train), rng), tasks[index].replay / (1 - tasks[index].replay)
    owed, mixed = 0.0, []
    for batch in plan:
        owed += odds * sum(sizes[task][line] for task, line in batch)
        extra: list[Ref] = []
        while owed > 0:
            (line,) = deck.draw(1)
            if owed < sizes[index][line] / 2:
                deck.left.insert(0, line)
                break
            owed -= sizes[index][line]
            extra.append((index, line))
        mixed.append([*batch, *extra])
    return mixed


class _Deck:
    """A task's lines in random order, shuffled again when all are drawn: none comes twice before each came once."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        self.left: list[int] = []

    def draw(self, wanted: int) -> list[int]:
        while len(self.left) < wanted:
            self.left += self.rng.permutation(self.size).tolist()
        drawn, self.left = self.left[:wanted], self.left[wanted:]
        return drawn


def shares(tasks: Sequence[Task], plan: Plan) -> list[dict[str, Any]]:
    """What the plan draws from each task: examples, tokens with loss, and the shares of both."""
    sizes = [[count([example]) for example in task.train] for task in tasks]
    examples, tokens = [0] * len(tasks), [0] * len(tasks)
    for batch in plan:
        for index, line in batch:
            examples[index] += 1
            tokens[index] += sizes[index][line]
    return [{"examples": lines, "completion_tokens": size, "share_of_examples": round(lines / sum(examples), 4),
             "share_of_tokens": round(size / max(1, sum(tokens)), 4)}
            for lines, size in zip(examples, tokens, strict=True)]
