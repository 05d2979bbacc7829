"""Loss of a run, a PEFT folder or a model folder, in torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from edgeft.contract import TaskOptions
from edgeft.contract.artifact import Artifact, read_artifact
from edgeft.contract.base import find_base, read_config
from edgeft.contract.data import kind_of, read_records
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.forgetting import as_evaluated, read_pairs
from edgeft.contract.grid import Quant
from edgeft.contract.heads import artifact_labels
from edgeft.contract.slots import Tensors
from edgeft.contract.tasks import choose_task
from edgeft.options import resolve

from .base import Base, load_base
from .forgetting import by_line, on_pairs, on_probe
from .grid import put_on_grid
from .held_out import probe_lines, soft_tokens
from .mixture import tokenize
from .objective import Objective, make_objective, measure
from .packed import packs_table
from .reference import Reference

if TYPE_CHECKING:
    from edgeft.plugins import Host

TOKENS_PER_PASS = 8192


def evaluate_run(folder: Path, data: Path | None, probe: Path | None, base_name: str | None, host: Host,
                 task: str | None = None, pairs: Path | None = None) -> dict[str, Any]:
    """Nats per completion token on `data`; on a probe `forgetting`: tuned minus base, in nats per token, with interval
    and KL; grammar `pairs`.

    `task` says whose prompt template phrases the data, and whose prompt is used, where there are several. Of a
    classifier: nats per example and accuracy.
    """
    artifact, index = _of_task(read_artifact(folder), host, task)
    name = base_name or artifact.base
    if artifact.kind != "model" and not name:
        raise UsageError(f"{folder}: does not say which base it belongs to. Name it with --base.")
    learned = {} if artifact.kind == "model" else artifact.learned()  # refuses pickles before PEFT would open one
    records = read_records(data) if data else []
    where = str(folder) if artifact.kind == "model" else name
    labels = artifact_labels(artifact, read_config(find_base(where)))
    if labels and (probe or pairs):
        raise UsageError(f"{folder}: is a classifier; --probe and --pairs are for language models.")
    tuned, model = _load(artifact, where, labels, learned, host)
    result: dict[str, Any] = {}
    if data:
        named = task if index is None else None  # what learned for each task is narrowed to one already
        template = artifact.prompt.template(named) if named or kind_of(records[0]) == "pair" else ""
        examples = tokenize(records, data, tuned, artifact.prompt.separator, tuned.context, template=template)
        result = measure(make_objective(tuned, model, index), examples, TOKENS_PER_PASS)
    if probe or pairs:
        result |= _forgetting(tuned, model, index, _reference(artifact, tuned, model, name, probe), probe, pairs)
    return result


def _load(artifact: Artifact, where: str, labels: Sequence[str], learned: Tensors,
          host: Host) -> tuple[Base, torch.nn.Module]:
    """The base, on the grid that it was trained on, and the model with what was learned in place."""
    tuned = load_base(where, labels=labels)
    if artifact.kind != "model" and artifact.base_fingerprint not in ("", tuned.fingerprint):
        raise EdgeftError(f"{artifact.folder}: was not trained on {where}: base fingerprint declared "
                          f"{artifact.base_fingerprint[:12]} found {tuned.fingerprint[:12]}.")
    grid = artifact.record.get("grid")
    if grid:  # the base that this was trained on
        put_on_grid(tuned.model, Quant.from_json(grid), packed=bool(grid.get("packed")),
                    table=packs_table(artifact.peft_type))
    model: torch.nn.Module = tuned.model
    if artifact.kind == "peft":
        try:
            model = PeftModel.from_pretrained(tuned.model, str(artifact.folder), local_files_only=True)
        except (ValueError, RuntimeError, TypeError, KeyError) as error:
            raise EdgeftError(f"{artifact.folder}: PEFT cannot load it on {where} "
                              f"({' '.join(str(error).split())[:300]})") from None
    elif artifact.kind == "learned":
        method = host.method(artifact.method)
        model = method.attach(tuned.model, resolve(method.Options, artifact.record.get("options", {})))
        unknown = model.load_state_dict({key: torch.tensor(value) for key, value in learned.items()},
                                        strict=False).unexpected_keys
        if unknown:
            raise EdgeftError(f"{artifact.folder}: {method.name} does not know {unknown[0]} and "
                              f"{len(unknown) - 1} more.")
    return tuned, model


def _reference(artifact: Artifact, tuned: Base, model: torch.nn.Module, name: str,
               probe: Path | None) -> Reference | None:
    """The base to compare with; None where no base is known and none is needed."""
    scratch = artifact.kind == "model" and artifact.method and not artifact.base_fingerprint
    if probe and scratch:
        raise UsageError(f"{artifact.folder}: was trained from scratch; there is no base that could be forgotten.")
    if probe and not name:
        raise UsageError(f"{artifact.folder}: does not record which base it was tuned from, so what it forgot cannot "
                         "be measured. Name it with --base.")
    return Reference(tuned, model, name, artifact.base_fingerprint, artifact.record.get("grid")) \
        if name and not scratch else None


def _forgetting(tuned: Base, model: torch.nn.Module, task: int | None, reference: Reference | None,
                probe: Path | None, pairs: Path | None) -> dict[str, Any]:
    objective, found = Objective(model, tuned.model.get_output_embeddings(), pad=tuned.eos or 0, task=task), {}
    soft = soft_tokens(model.active_peft_config) if isinstance(model, PeftModel) else 0
    if probe:
        sums = by_line(objective, reference, probe_lines(probe, tuned, soft), TOKENS_PER_PASS)
        found = as_evaluated(on_probe(probe, sums))
    if pairs:
        sentences = read_pairs(pairs, tuned.tokenizer, tuned.eos, tuned.context - soft)
        found["pairs"] = on_pairs(pairs, sentences, objective, reference, TOKENS_PER_PASS)
    return found


def _of_task(artifact: Artifact, host: Host, task: str | None) -> tuple[Artifact, int | None]:
    """Of a method that learned something for each task: the artifact for one of them, and that task's index."""
    method = host.method_for_peft(artifact.peft_type) if artifact.kind == "peft" else host.methods.get(artifact.method)
    if method is None or not issubclass(method.Options, TaskOptions):
        return artifact, None
    options = method.read_peft(artifact.peft_config) if artifact.kind == "peft" else \
        resolve(method.Options, artifact.record.get("options", {}))
    artifact, options = choose_task(artifact, options, task)
    return artifact, options.task_index
