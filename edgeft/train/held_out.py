"""What is measured before and after training: each task's own lines, tasks never trained on, and the probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeft.contract.data import Example, kind_of, read_records, task_names
from edgeft.contract.errors import UsageError
from edgeft.contract.files import sha256

from .base import Base
from .job import Job
from .mixture import Task, tokenize
from .objective import AnyObjective, measure


@dataclass
class Evaluation:
    """Evaluation sets by name, held-out tasks by name, and the probe for forgetting."""

    sets: dict[str, list[Example]]
    held_out: dict[str, list[Example]] = field(default_factory=dict)
    probe: list[Example] = field(default_factory=list)

    def measure(self, objective: AnyObjective, limit: int) -> dict[str, Any]:
        """Loss of each set, of each held-out task and of the probe, with what it was measured on."""
        return {"sets": {name: measure(objective, examples, limit) for name, examples in self.sets.items()},
                "held_out": {name: measure(objective, examples, limit) for name, examples in self.held_out.items()},
                "probe": measure(objective, self.probe, limit) if self.probe else None}


def load_evaluation(job: Job, tasks: Sequence[Task], base: Base, length: int) -> Evaluation:
    """Read and tokenize all that is measured; UsageError if a held-out task is in the training data."""
    separator = job.settings.separator
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
    return Evaluation(sets, held_out, _probe(job, base, length))


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
    if not job.held_out:
        return
    trained = {sha256(Path(spec.data)): spec for spec in job.trained}
    for spec in job.held_out:
        same = trained.get(sha256(Path(spec.data)))
        if same:
            raise UsageError(f"{spec.data}: is a held-out task, and task {same.name!r} trains on the same lines "
                             f"({same.data}).")


def _probe(job: Job, base: Base, length: int) -> list[Example]:
    if not job.probe:
        return []
    records = read_records(Path(job.probe))
    if kind_of(records[0]) != "text":
        raise UsageError(f"{job.probe}: a probe for forgetting holds lines of {{\"text\": ...}}.")
    return tokenize(records, Path(job.probe), base, job.settings.separator, length)
