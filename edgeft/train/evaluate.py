"""Loss of a run, a PEFT folder or a model folder, in torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from edgeft.contract import TaskOptions
from edgeft.contract.artifact import Artifact, read_artifact
from edgeft.contract.base import find_base, read_config
from edgeft.contract.data import kind_of, read_records
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.grid import Quant
from edgeft.contract.heads import artifact_labels
from edgeft.contract.tasks import choose_task
from edgeft.options import resolve

from .base import Base, load_base
from .grid import put_on_grid
from .mixture import tokenize
from .objective import make_objective, measure
from .packed import packs_table

if TYPE_CHECKING:
    from edgeft.plugins import Host

TOKENS_PER_PASS = 8192


def evaluate_run(folder: Path, data: Path, probe: Path | None, base_name: str | None, host: Host,
                 task: str | None = None) -> dict[str, Any]:
    """Nats per completion token; with a probe also `forgetting`: tuned minus base, in nats per token.

    `task` says whose prompt template phrases the data, and whose prompt is used, where there are several. Of a
    classifier: nats per example and accuracy.
    """
    artifact, index = _of_task(read_artifact(folder), host, task)
    name = base_name or artifact.base
    if artifact.kind != "model" and not name:
        raise UsageError(f"{folder}: does not say which base it belongs to. Name it with --base.")
    learned = {} if artifact.kind == "model" else artifact.learned()  # refuses pickles before PEFT would open one
    records = read_records(data)
    probe_records = read_records(probe) if probe else None
    where = str(folder) if artifact.kind == "model" else name
    labels = artifact_labels(artifact, read_config(find_base(where)))
    if labels and probe:
        raise UsageError(f"{folder}: is a classifier; --probe is for language models.")
    tuned = load_base(where, labels=labels)
    if artifact.kind != "model" and artifact.base_fingerprint not in ("", tuned.fingerprint):
        raise EdgeftError(f"{folder}: was not trained on {name}: base fingerprint declared "
                          f"{artifact.base_fingerprint[:12]} found {tuned.fingerprint[:12]}.")
    grid = artifact.record.get("grid")
    if grid:  # the base that this was trained on
        put_on_grid(tuned.model, Quant.from_json(grid), packed=bool(grid.get("packed")),
                    table=packs_table(artifact.peft_type))
    model: torch.nn.Module = tuned.model
    if artifact.kind == "peft":
        try:
            model = PeftModel.from_pretrained(tuned.model, str(folder), local_files_only=True)
        except (ValueError, RuntimeError, TypeError, KeyError) as error:
            raise EdgeftError(f"{folder}: PEFT cannot load it on {name} ({' '.join(str(error).split())[:300]})") \
                from None
    elif artifact.kind == "learned":
        method = host.method(artifact.method)
        model = method.attach(tuned.model, resolve(method.Options, artifact.record.get("options", {})))
        unknown = model.load_state_dict({key: torch.tensor(value) for key, value in learned.items()},
                                        strict=False).unexpected_keys
        if unknown:
            raise EdgeftError(f"{folder}: {method.name} does not know {unknown[0]} and {len(unknown) - 1} more.")
    separator, prompt = artifact.prompt.separator, artifact.prompt
    named = task if index is None else None  # what learned for each task is narrowed to one already
    template = prompt.template(named) if named or kind_of(records[0]) == "pair" else ""
    result = _measure(tuned, model, records, data, separator, template, index)
    if probe_records is not None:
        assert probe is not None
        if kind_of(probe_records[0]) != "text":
            raise UsageError(f"{probe}: a probe for forgetting holds lines of {{\"text\": ...}}.")
        if not name:
            raise UsageError(f"{folder}: does not record which base it was tuned from, so what it forgot cannot be "
                             "measured. Name it with --base.")
        after = _measure(tuned, model, probe_records, probe, separator, task=index)
        base = load_base(name)
        if artifact.kind == "model" and not base.fingerprint:
            raise UsageError(f"{folder}: was trained from scratch; there is no base that could be forgotten.")
        if grid:
            put_on_grid(base.model, Quant.from_json(grid), packed=bool(grid.get("packed")))
        before = _measure(base, base.model, probe_records, probe, separator)
        result |= {"forgetting": after["loss"] - before["loss"], "probe_tokens": after["tokens"],
                   "probe_base_loss": before["loss"], "probe_loss": after["loss"]}
    return result


def _of_task(artifact: Artifact, host: Host, task: str | None) -> tuple[Artifact, int | None]:
    """Of a method that learned something for each task: the artifact for one of them, and that task's index."""
    method = host.method_for_peft(artifact.peft_type) if artifact.kind == "peft" else host.methods.get(artifact.method)
    if method is None or not issubclass(method.Options, TaskOptions):
        return artifact, None
    options = method.read_peft(artifact.peft_config) if artifact.kind == "peft" else \
        resolve(method.Options, artifact.record.get("options", {}))
    artifact, options = choose_task(artifact, options, task)
    return artifact, options.task_index


def _measure(base: Base, model: torch.nn.Module, records: list[dict[str, Any]], path: Path, separator: str,
             template: str = "", task: int | None = None) -> dict[str, Any]:
    examples = tokenize(records, path, base, separator, base.context, template=template)
    return measure(make_objective(base, model, task), examples, TOKENS_PER_PASS)
