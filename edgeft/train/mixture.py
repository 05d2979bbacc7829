"""Data files to batches: tokenize, hold out, mix by weight, and plan every batch of the run up front.

The plan depends on the seed alone, so a resumed run meets the same batches without replaying any data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeft.contract.data import (
    Example,
    PromptFormat,
    encode,
    kind_of,
    read_records,
    record_digest,
    segments,
    task_names,
    windows,
)
from edgeft.contract.errors import EdgeftError, Faults, UsageError
from edgeft.contract.files import sha256

from .labels import encode_labels

if TYPE_CHECKING:
    from .base import Base


@dataclass
class Task:
    """One data file: what is trained on and what is held out of it."""

    name: str
    path: Path
    weight: float
    kind: str
    train: list[Example] = field(default_factory=list)
    held_out: list[Example] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """As recorded in edgeft.json."""
        return {"name": self.name, "path": str(self.path.resolve()), "weight": self.weight, "kind": self.kind,
                "sha256": sha256(self.path), "examples": len(self.train), "held_out": len(self.held_out),
                "completion_tokens": count(self.train)}


def count(examples: Sequence[Example]) -> int:
    """Tokens that carry loss."""
    return sum(sum(example.mask) for example in examples)


def split_weight(text: str) -> tuple[Path, float]:
    """`D.jsonl:2` -> (D.jsonl, 2.0); the weight is how often each line is seen per epoch."""
    path, colon, weight = text.rpartition(":")
    if colon and not Path(text).exists():
        try:
            value = float(weight)
        except ValueError:
            return Path(text), 1.0
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"--data {text}: the weight must be above 0, found {weight}")
        return Path(path), value
    return Path(text), 1.0


def load_tasks(data: Sequence[str], base: Base, *, separator: str, max_length: int, holdout: float) -> list[Task]:
    """Read and tokenize every file of a mixture."""
    pairs = [split_weight(text) for text in data]
    tasks = []
    for name, (path, weight) in zip(task_names([path for path, _ in pairs]), pairs, strict=True):
        records = read_records(path)
        kept = [record for record in records if not _held_out(record, holdout)]
        if not kept:
            raise UsageError(f"{path}: --holdout {holdout} leaves no line to train on.")
        task = Task(name, path, weight, kind_of(records[0]))
        task.train = tokenize(kept, path, base, separator, max_length, pack=True)
        held_out = [record for record in records if _held_out(record, holdout)]
        task.held_out = tokenize(held_out, path, base, separator, max_length) if held_out else []
        tasks.append(task)
    return tasks


def _held_out(record: dict[str, Any], share: float) -> bool:
    """By digest: equal lines go the same way, and a longer file keeps what a shorter one held out."""
    return int(record_digest(record)[:8], 16) < share * 2**32


def tokenize(records: Sequence[dict[str, Any]], path: Path, base: Base, separator: str, max_length: int,
             *, pack: bool = False) -> list[Example]:
    """Token ids and loss masks of every line; with `pack`, plain text is joined into full blocks."""
    kind = kind_of(records[0])
    if kind == "label":
        return encode_labels(records, path, base, max_length)
    if base.labels:
        raise UsageError(f"{path}: a classifier is measured on lines of {{\"text\", \"label\"}}.")
    examples = [encode(base.tokenizer, segments(record, separator, base.render), base.eos) for record in records]
    if kind == "text":
        return _pack(examples, max_length) if pack else [
            part for example in examples for part in windows(example, max_length)]
    faults = Faults(f"{path}: has lines longer than {max_length} tokens")
    for index, example in enumerate(examples, 1):
        if len(example.ids) > max_length:
            faults.add(f"example {index}: {len(example.ids)} tokens ({str(records[index - 1])[:60]}...)")
    faults.raise_if_any("Raise --max-length (the base's context is the limit), or shorten them.")
    return examples


def _pack(examples: Sequence[Example], length: int) -> list[Example]:
    """Join texts end to end and cut into blocks of `length`, so that no token is padding."""
    ids = [token for example in examples for token in example.ids]
    blocks = [ids[start : start + length] for start in range(0, len(ids), length)]
    return [Example(block, [False] + [True] * (len(block) - 1)) for block in blocks if len(block) > 1]


def prompt_format(tasks: Sequence[Task], separator: str) -> PromptFormat:
    """How the runner must phrase prompts: as most of the mixture does; plain text beside it is replay."""
    kinds = {kind: sum(count(task.train) * task.weight for task in tasks if task.kind == kind)
             for kind in ("pair", "chat")}
    kind = max(kinds, key=lambda name: kinds[name])
    if not kinds[kind]:
        return PromptFormat("raw")
    return PromptFormat("pair", separator) if kind == "pair" else PromptFormat("chat")


Ref = tuple[int, int]  # task, example


def plan_batches(tasks: Sequence[Task], *, batch_size: int, epochs: float, max_steps: int,
                 seed: int) -> list[list[Ref]]:
    """Every batch of the run. Lines of like length share a batch where they are near each other in the shuffle."""
    rng = np.random.Generator(np.random.PCG64(seed))
    per_epoch = sum(max(1, round(task.weight * len(task.train))) for task in tasks)
    wanted = max_steps * batch_size if max_steps else max(1, round(epochs * per_epoch))
    refs: list[Ref] = []
    while len(refs) < wanted:
        epoch = [(index, int(line)) for index, task in enumerate(tasks) for line in _draw(task, rng)]
        refs += [epoch[position] for position in rng.permutation(len(epoch))]
    del refs[wanted:]
    window = 16 * batch_size
    batches: list[list[Ref]] = []
    for start in range(0, len(refs), window):
        near = sorted(refs[start : start + window], key=lambda ref: len(tasks[ref[0]].train[ref[1]].ids))
        cut = [near[at : at + batch_size] for at in range(0, len(near), batch_size)]
        batches += [cut[position] for position in rng.permutation(len(cut))]
    return batches


def _draw(task: Task, rng: np.random.Generator) -> np.ndarray:
    """One epoch's lines of a task: whole passes, and a random part of one for the rest of the weight."""
    size = len(task.train)
    wanted = max(1, round(task.weight * size))
    return np.concatenate([rng.permutation(size) for _ in range(-(-wanted // size))])[:wanted]


def passes(examples: Sequence[Example], limit: int) -> list[list[Example]]:
    """Split a batch so that each part, padded to its longest, has at most `limit` tokens."""
    parts: list[list[Example]] = []
    for example in sorted(examples, key=lambda item: -len(item.ids)):
        if parts and len(parts[-1][0].ids) * (len(parts[-1]) + 1) <= limit:
            parts[-1].append(example)
        else:
            parts.append([example])
    return parts


def check_tokens(tasks: Sequence[Task]) -> None:
    """A task without a token to learn from is a mistake, not an empty success."""
    for task in tasks:
        if count(task.train) == 0:
            raise EdgeftError(f"{task.path}: no token in it carries loss.")
