"""What is measured before and after training: each task's own lines, tasks never trained on, and the probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeft.contract.data import Example, kind_of, read_records, task_names
from edgeft.contract.errors import UsageError
from edgeft.contract.files import sha256
from edgeft.contract.forgetting import WINDOW, read_pairs, with_loss

from .base import Base
from .job import Job
from .mixture import REPLAY, Task, tokenize
from .objective import AnyObjective, measure
from .settings import split_replay


@dataclass
class Evaluation:
    """Evaluation sets by name, held-out tasks by name, and what shows forgetting: the probe by line, and pairs."""

    sets: dict[str, list[Example]]
    held_out: dict[str, list[Example]] = field(default_factory=dict)
    probe: Sequence[Sequence[Example]] = field(default_factory=list)  # the windows of each line
    pairs: list[Example] = field(default_factory=list)  # good, bad, good, bad, ...

    def measure(self, objective: AnyObjective, limit: int, *, probe: bool = False) -> dict[str, Any]:
        """Loss of each set and each held-out task, with what it was measured on; of the probe if that is asked."""
        known = [example for line in self.probe for example in line]
        return {"sets": {name: measure(objective, examples, limit) for name, examples in self.sets.items()},
                "held_out": {name: measure(objective, examples, limit) for name, examples in self.held_out.items()},
                "probe": measure(objective, known, limit) if probe and known else None}


def load_evaluation(job: Job, tasks: Sequence[Task], base: Base, length: int) -> Evaluation:
    """Read and tokenize all that is measured; UsageError if a held-out task is in the training data."""
    separator = job.settings.separator
    replayed = [example for task in tasks if task.replay for example in task.held_out]
    tasks = [task for task in tasks if not task.replay]
    sets: dict[str, list[Example]] = {}
    for index, task in enumerate(tasks):
        if task.spec.eval_data:
            path = Path(task.spec.eval_data)
            sets[task.name] = tokenize(read_records(path), path, base, separator, length, task=index,
                                       template=task.spec.template)
        elif task.held_out:
            sets[task.name] = task.held_out
    paths = [Path(text) for text in job.eval_data]
    for name, path in zip(task_names(paths) if paths else [], paths, strict=True):
        if name in sets:
            raise UsageError(f"--eval-data {path}: there is an evaluation set {name!r} already, of the task of that "
                             "name. Rename the file.")
        records = read_records(path)
        like, template = _like(tasks, path) if kind_of(records[0]) == "pair" else (None, "")
        sets[name] = tokenize(records, path, base, separator, length, template=template, task=like)
    _refuse_leaks(job)
    held_out = {spec.name: tokenize(read_records(Path(spec.data)), Path(spec.data), base, separator, length,
                                    template=spec.template) for spec in job.held_out}
    if replayed and REPLAY in sets:
        raise UsageError(f"An evaluation set is named {REPLAY!r}, as that of --replay. Name its task otherwise.")
    if replayed:
        sets[REPLAY] = replayed
    if (job.probe or job.pairs) and not base.fingerprint:
        raise UsageError(f"base {job.base!r}: has no weights yet, so there is nothing that it could forget. Text for "
                         "--probe can be --eval-data.")
    return Evaluation(sets, held_out, _probe(job, base), _pairs(job, base))


def soft_tokens(options: Any) -> int:
    """Tokens of the context that a soft prompt takes."""
    return int(getattr(options, "num_virtual_tokens", None) or 0)


def _like(tasks: Sequence[Task], path: Path) -> tuple[int | None, str]:
    """The task whose very file this is, or how all tasks are phrased; UsageError if that is not one way."""
    for index, task in enumerate(tasks):
        if Path(task.spec.data).resolve() == path.resolve():
            return index, task.spec.template
    templates = {task.spec.template for task in tasks if task.kind == "pair"}
    if len(templates) > 1:
        raise UsageError(f"--eval-data {path}: each task has its own template. Say whose: --eval-data TASK={path} "
                         f"(tasks: {', '.join(task.name for task in tasks)}).")
    return (0 if len(tasks) == 1 else None), next(iter(templates), "")


def _refuse_leaks(job: Job) -> None:
    replayed, _ = split_replay(job.settings.replay)
    if replayed and job.probe and sha256(Path(replayed)) == sha256(Path(job.probe)):
        raise UsageError(f"--replay {replayed} and --probe {job.probe}: are the same lines, so what is forgotten would "
                         "be measured on what is learned. Probe with other text.")
    if not job.held_out:
        return
    trained = {sha256(Path(spec.data)): spec for spec in job.trained}
    for spec in job.held_out:
        same = trained.get(sha256(Path(spec.data)))
        if same:
            raise UsageError(f"{spec.data}: is a held-out task, and task {same.name!r} trains on the same lines "
                             f"({same.data}).")


def _probe(job: Job, base: Base) -> Sequence[Sequence[Example]]:
    return probe_lines(Path(job.probe), base, soft_tokens(job.options)) if job.probe else []


def probe_lines(path: Path, base: Base, soft: int = 0) -> Sequence[Sequence[Example]]:
    """Lines of text that the base knew, as windows with room for a soft prompt; UsageError for other lines."""
    records = read_records(path)
    if kind_of(records[0]) != "text":
        raise UsageError(f"{path}: a probe for forgetting holds lines of {{\"text\": ...}}.")
    length = min(WINDOW, base.context - soft)
    return with_loss(path, [tokenize([record], path, base, "", length) for record in records])


def _pairs(job: Job, base: Base) -> list[Example]:
    if job.pairs and base.labels:
        raise UsageError("--pairs is for language models, and this is a classifier.")
    return read_pairs(Path(job.pairs), base.tokenizer, base.eos,
                      base.context - soft_tokens(job.options)) if job.pairs else []
