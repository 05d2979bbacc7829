"""Data files to examples: read, hold out, phrase and tokenize each task of a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.contract.data import Example, encode, kind_of, read_records, record_digest, segments, windows
from edgeft.contract.errors import EdgeftError, Faults, UsageError
from edgeft.contract.files import sha256
from edgeft.contract.prompt import PLACE, PromptFormat

from .labels import encode_labels
from .tasks import TaskSpec

if TYPE_CHECKING:
    from .base import Base


REPLAY, BLOCK = "replay", 64  # the name that its loss is shown under; tokens of its blocks, at least


@dataclass
class Task:
    """One task that is trained on: its examples, and those held out of its file."""

    spec: TaskSpec
    kind: str
    train: list[Example] = field(default_factory=list)
    held_out: list[Example] = field(default_factory=list)
    replay: float = 0.0  # of source text mixed in by --replay: its share of the tokens with loss

    @property
    def name(self) -> str:
        return self.spec.name

    def describe(self) -> dict[str, Any]:
        """As recorded in edgeft.json."""
        path = Path(self.spec.data)
        return {"name": self.name, "path": str(path.resolve()), "weight": self.spec.weight, "kind": self.kind,
                "sha256": sha256(path), "examples": len(self.train), "held_out": len(self.held_out),
                "completion_tokens": count(self.train), **({"replay": self.replay} if self.replay else {})}


def count(examples: Sequence[Example]) -> int:
    """Tokens that carry loss."""
    return sum(sum(example.mask) for example in examples)


def load_tasks(specs: Sequence[TaskSpec], base: Base, *, separator: str, max_length: int,
               holdout: float) -> list[Task]:
    """Read and tokenize every file of a mixture; a part of each is held out where it has no evaluation data."""
    tasks = []
    for index, spec in enumerate(specs):
        path, share = Path(spec.data), 0.0 if spec.eval_data else holdout
        records = read_records(path)
        kept = [record for record in records if not _held_out(record, share)]
        if not kept:
            raise UsageError(f"{path}: --holdout {share} leaves no line to train on.")
        task = Task(spec, kind_of(records[0]))
        how: dict[str, Any] = {"template": spec.template, "task": index}
        task.train = tokenize(kept, path, base, separator, max_length, pack=True, **how)
        held_out = [record for record in records if _held_out(record, share)]
        task.held_out = tokenize(held_out, path, base, separator, max_length, **how) if held_out else []
        if count(task.train) == 0:
            raise EdgeftError(f"{path}: no token in it carries loss.")
        tasks.append(task)
    return tasks


def load_replay(replay: tuple[str, float], tasks: Sequence[Task], base: Base, *, separator: str, max_length: int,
                holdout: float) -> Task:
    """Source text as a task beside the others, in blocks about as long as their examples: none is padded to another."""
    path, share = Path(replay[0]), replay[1]
    records = read_records(path)
    if base.labels or kind_of(records[0]) == "label":
        raise UsageError(f"--replay {path}: mixes in text that a language model knew; a classifier has none.")
    if not base.fingerprint:
        raise UsageError(f"--replay {path}: the base has no weights yet, so it knew no text. Give it as --data.")
    kept = [record for record in records if not _held_out(record, holdout)] or records
    held_out = [record for record in records if _held_out(record, holdout)] if len(kept) < len(records) else []
    lengths = [len(example.ids) for task in tasks for example in task.train]
    block = min(max_length, max(BLOCK, round(sum(lengths) / len(lengths))))
    task = Task(TaskSpec(REPLAY, str(path)), kind_of(records[0]), replay=share)
    task.train = tokenize(kept, path, base, separator, block if task.kind == "text" else max_length, pack=True)
    task.held_out = tokenize(held_out, path, base, separator, max_length) if held_out else []
    if count(task.train) == 0:
        raise EdgeftError(f"{path}: no token in it carries loss.")
    return task


def _held_out(record: dict[str, Any], share: float) -> bool:
    """By digest: equal lines go the same way, and a longer file keeps what a shorter one held out."""
    return int(record_digest(record)[:8], 16) < share * 2**32


def tokenize(records: Sequence[dict[str, Any]], path: Path, base: Base, separator: str, max_length: int,
             *, pack: bool = False, template: str = "", task: int | None = None) -> list[Example]:
    """Token ids and loss masks of every line; with `pack`, plain text is joined into full blocks.

    `template` phrases the prompts, `task` is the index of the task that the lines belong to.
    """
    kind = kind_of(records[0])
    if kind == "label":
        return encode_labels(records, path, base, max_length)
    if base.labels:
        raise UsageError(f"{path}: a classifier is measured on lines of {{\"text\", \"label\"}}.")
    if template and kind != "pair":
        raise UsageError(f"{path}: holds lines of kind {kind!r}, and a template phrases the prompts of lines with "
                         "prompt and completion.")
    examples = [replace(encode(base.tokenizer, segments(record, separator, base.render, template), base.eos), task=task)
                for record in records]
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
    task = examples[0].task
    return [Example(block, [False] + [True] * (len(block) - 1), task) for block in blocks if len(block) > 1]


def prompt_format(tasks: Sequence[Task], separator: str) -> PromptFormat:
    """How the runner must phrase prompts: as most of the mixture does; replay and plain text beside it do not count."""
    tasks = [task for task in tasks if not task.replay]
    if any(task.spec.template for task in tasks):
        return PromptFormat("pair", separator, tuple((task.name, task.spec.template or PLACE)
                                                     for task in tasks if task.kind == "pair"))
    kinds = {kind: sum(count(task.train) * task.spec.weight for task in tasks if task.kind == kind)
             for kind in ("pair", "chat")}
    kind = max(kinds, key=lambda name: kinds[name])
    if not kinds[kind]:
        return PromptFormat("raw")
    return PromptFormat("pair", separator) if kind == "pair" else PromptFormat("chat")


def passes(examples: Sequence[Example], limit: int) -> list[list[Example]]:
    """Split a batch so that each part, padded to its longest, has at most `limit` tokens."""
    parts: list[list[Example]] = []
    for example in sorted(examples, key=lambda item: -len(item.ids)):
        if parts and len(parts[-1][0].ids) * (len(parts[-1]) + 1) <= limit:
            parts[-1].append(example)
        else:
            parts.append([example])
    return parts
