"""The command that makes a run or a bundle again, from what each recorded."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from edgeft.contract import Method, TaskOptions
from edgeft.options import default_of
from edgeft.train.settings import TrainSettings
from edgeft.train_command import TEXTS

from .collect import Made, Subject
from .fields import Fields
from .runs import Run


def train_command(run: Run, methods: Mapping[str, Method[Any]]) -> list[str]:
    """The words of `edgeft train` that start this run again; options that are as by default are left out."""
    record = run.record
    words = ["edgeft", "train", run.method or "METHOD", "--base", record.inside("base").text("id") or "BASE"]
    for task in record.rows("tasks") or record.rows("data"):
        words += _task_words(task)
    for path in record.texts("eval_data"):
        words += ["--eval-data", path]
    for flag in TEXTS:
        if flag != "base" and record.text(flag):
            words += [f"--{flag}", record.text(flag)]
    method = methods.get(run.method)
    own = {} if method is None else defaults(method.Options)
    skipped = {item.name for item in dataclasses.fields(TaskOptions)} - {"task"} if "tasks" in own else set()
    words += _flags(record.inside("options").value, own, skipped)
    words += _flags(record.inside("settings").value, defaults(TrainSettings), set())
    return [*words, "--out", run.label.rpartition("/")[2]]


def unknown_options(run: Run, methods: Mapping[str, Method[Any]]) -> list[str]:
    """What was recorded and is no option of the methods and the version that are installed here."""
    method = methods.get(run.method)
    parts = (("options", {} if method is None else defaults(method.Options)), ("settings", defaults(TrainSettings)))
    return [f"{name} = {value}" for part, known in parts for name, value in run.record.inside(part).value.items()
            if name not in known]


def export_commands(made: Made) -> list[list[str]]:
    """The words of `edgeft export`, and of `edgeft add` for each further adapter."""
    manifest, origin = made.manifest, made.manifest.inside("provenance")
    first = origin.text("source")
    name = made.label.rpartition("/")[2]
    device, quant = manifest.inside("device"), manifest.inside("quant").text("kind")
    words = ["edgeft", "export", first or "SOURCE", "--device", device.text("name"), "--out", name]
    if quant and quant != device.inside("graph").text("quant"):
        words += ["--quant", quant]
    if origin.flag("merged"):
        words.append("--merge")
    words += [word for subject in made.subjects if subject.kind == "model" for word in _changed(subject)]
    adapters = [subject for subject in made.subjects if subject.kind == "adapter"]
    # An adapter may have been taken out since, or another one be the default: the source tells which came first
    own = next((item for item in adapters if item.source == first), None)
    if own is not None:
        words += ["--name", own.name, *_changed(own)]
    return [words, *(["edgeft", "add", name, item.source or "SOURCE", "--name", item.name, *_changed(item)]
                     for item in adapters if item is not own)]


def _changed(subject: Subject) -> list[str]:
    """The flags that made an adapter another than the one that was trained: compressed, or held to a budget."""
    rank, budget = subject.report.inside("fidelity").number("rank"), subject.entry.number("forgetting_budget")
    words = [] if rank is None else ["--as-adapter", "--rank", f"{rank:g}"]
    if budget is not None:
        words += ["--forgetting-budget", f"{budget:g}", "--probe", subject.entry.inside("forgetting").text("probe")]
    return words


def _task_words(task: Fields) -> list[str]:
    name, path = task.text("name"), task.text("data") or task.text("path")
    weight = task.number("weight")
    if task.flag("held_out"):
        return ["--held-out-task", f"{name}={path}"]
    words = ["--data", f"{name}={path}" + (f":{weight:g}" if weight not in (None, 1) else "")]
    for flag in ("template", "eval_data"):
        if task.text(flag):
            words += [f"--{flag.replace('_', '-')}", f"{name}={task.text(flag)}"]
    return words


def _flags(found: Mapping[str, Any], default: Mapping[str, Any], skipped: set[str]) -> list[str]:
    """Flags of all that differs from its default; what has no default here is no option here."""
    words = []
    for name, value in found.items():
        if name in skipped or name not in default or _plain(value) == _plain(default[name]):
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, dict):
            words += [flag, ",".join(f"{key}={item}" for key, item in value.items())]
        elif isinstance(value, (list, tuple)):
            words += [flag, ",".join(map(str, value))]
        else:
            words += [flag, str(value)]
    return words


def defaults(options: type) -> dict[str, Any]:
    """Each option's default."""
    return {item.name: default_of(item) for item in dataclasses.fields(options)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def shown(words: list[str], width: int = 96) -> str:
    """A command as one pastes it: quoted, and broken between its options."""
    lines, line = [], ""
    for group in _pairs([shlex.quote(word) for word in words]):
        if line and len(line) + 1 + len(group) > width:
            lines.append(line)
            line = f"    {group}"
        else:
            line = f"{line} {group}".lstrip() if not line.startswith("    ") else f"{line} {group}"
    return " \\\n".join([*lines, line])


def _pairs(words: list[str]) -> list[str]:
    """A flag and its value stay together."""
    groups: list[str] = []
    for word in words:
        if groups and groups[-1].startswith("--") and " " not in groups[-1] and not word.startswith("--"):
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    return groups
