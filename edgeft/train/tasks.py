"""The tasks of a mixture as asked for, from flags and from `[tasks.NAME]` tables of a TOML file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeft.contract.data import task_names
from edgeft.contract.errors import UsageError, did_you_mean
from edgeft.contract.prompt import check_template
from edgeft.options import resolve


@dataclass(frozen=True)
class TaskSpec:
    """One task: its data, how much of it is drawn, how it is phrased, and what it is evaluated on."""

    name: str = ""
    data: str = ""
    weight: float = 1.0
    template: str = ""  # none: prompts as they are
    eval_data: str = ""
    held_out: bool = False  # never trained on, only measured

    def __post_init__(self) -> None:
        if not self.name or set(self.name) & set(",="):
            raise ValueError(f"a task's name must be text without ',' and '=', found {self.name!r}. Name it: "
                             "--data NAME=FILE")
        if not self.data:
            raise ValueError(f"task {self.name!r}: data is missing")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"task {self.name!r}: the weight must be above 0, found {self.weight:g}")
        if self.held_out and (self.weight != 1 or self.eval_data):
            raise ValueError(f"task {self.name!r}: is held out, so it takes neither weight nor eval_data")
        if self.template:
            try:
                check_template(self.template)
            except ValueError as error:
                raise ValueError(f"task {self.name!r}: the template {error}") from None


def resolve_tasks(layers: Sequence[Mapping[str, Any]], who: str) -> tuple[list[TaskSpec], list[str]]:
    """Tasks, trained ones first, and evaluation files of no task, out of layers of options; later ones win.

    A layer's data replaces what earlier ones say of trained tasks, its held-out tasks those of earlier ones; a
    template or evaluation file given by a task's name changes that task.
    """
    trained: list[TaskSpec] = []
    held: list[TaskSpec] = []
    named: list[tuple[str, str]] = []  # field, NAME=VALUE
    evals: list[str] = []
    for layer in layers:
        specs = [*_tables(layer.get("tasks"), who), *_flags(layer, who)]
        trained = [spec for spec in specs if not spec.held_out] or trained
        held = [spec for spec in specs if spec.held_out] or held
        named += [("template", text) for text in texts(layer, "template", who)]
        evals = texts(layer, "eval_data", who) or evals
    tasks = {spec.name: spec for spec in [*trained, *held]}
    if len(tasks) < len(trained) + len(held):
        raise UsageError(f"{who}: two tasks have one name among {', '.join(s.name for s in [*trained, *held])}. "
                         "Name them: --data NAME=FILE.")
    loose = [text for text in evals if Path(text).exists() or _owner(text, tasks) is None]
    for kind, text in [*named, *(("eval_data", text) for text in evals if text not in loose)]:
        name = _owner(text, tasks)
        if name is None:
            start = text.partition("=")[0]
            raise UsageError(f"{who}: --{kind} takes TASK=TEXT, and {start[:40]!r} is no task."
                             f"{did_you_mean(start, list(tasks))}")
        try:
            change: dict[str, Any] = {kind: text[len(name) + 1 :]}
            tasks[name] = replace(tasks[name], **change)
        except ValueError as error:
            raise UsageError(f"{who}: {error}") from None
    return list(tasks.values()), loose


def texts(layer: Mapping[str, Any], key: str, who: str) -> list[str]:
    """A repeatable option of a layer: one text or a list of them."""
    value = layer.get(key) or ()
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise UsageError(f"{who}: {key} must be text or a list of texts, found {value!r}")
    return list(items)


def _owner(text: str, names: Iterable[str]) -> str | None:
    """The task that NAME=VALUE is about."""
    return max((name for name in names if text.startswith(f"{name}=")), key=len, default=None)


def _tables(value: Any, who: str) -> list[TaskSpec]:
    """`[tasks.NAME]` tables of TOML, or the list that a run recorded."""
    if value is None:
        return []
    if isinstance(value, list):
        value = {str(item.get("name")): item for item in value if isinstance(item, dict)}
    if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
        raise UsageError(f"{who}: tasks are tables, [tasks.NAME] with data and more, found {value!r}")
    return [resolve(TaskSpec, {**table, "name": name}, who=f"{who}: [tasks.{name}]") for name, table in value.items()]


def _flags(layer: Mapping[str, Any], who: str) -> list[TaskSpec]:
    data = [_split_data(text) for text in texts(layer, "data", who)]
    held = [_split_name(text) for text in texts(layer, "held_out_task", who)]
    both = {Path(path).resolve() for _, path, _ in data} & {Path(path).resolve() for _, path in held}
    if both:
        raise UsageError(f"{who}: {min(both)} is in --data and a held-out task, which must never be trained on.")
    given = [(name, path, weight, False) for name, path, weight in data]
    given += [(name, path, 1.0, True) for name, path in held]
    unnamed = [Path(path) for name, path, *_ in given if not name]
    names = dict(zip(unnamed, task_names(unnamed), strict=True)) if unnamed else {}
    return [resolve(TaskSpec, {"name": name or names[Path(path)], "data": path, "weight": weight, "held_out": out},
                    who=who) for name, path, weight, out in given]


def _split_data(text: str) -> tuple[str, str, float]:
    """`[NAME=]D.jsonl[:weight]` -> (name or "", path, weight)."""
    name, rest = _split_name(text)
    path, colon, weight = rest.rpartition(":")
    if colon and not Path(rest).exists():
        try:
            return name, path, float(weight)
        except ValueError:
            pass
    return name, rest, 1.0


def _split_name(text: str) -> tuple[str, str]:
    """`[NAME=]FILE` -> (name or "", path); a file whose own name has '=' is found if it is there."""
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists() or (re.search(r"[/\\]", name) and not Path(path).exists()):
        return "", text
    return name, path


def to_json(tasks: Sequence[TaskSpec]) -> list[dict[str, Any]]:
    """As recorded in settings.json and edgeft.json, without what is not said."""
    default = TaskSpec("t", "d")
    return [{key: value for key, value in asdict(task).items() if key in ("name", "data")
             or value != getattr(default, key)} for task in tasks]
