"""The proof of a bundle that classifies or embeds: its scores are torch's, alone and in a padded batch."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from edgeft.contract.errors import Faults
from edgeft.contract.heads import Head, pool

from . import verify
from .oracle import Oracle
from .parity import SAMPLES, prove
from .resolve import Job

TEXTS = 8
LONGEST = 64  # tokens of a text
ALIKE = 0.99  # cosine from which two embeddings agree
# One text in eight may change its label by the rounding of activations; KL is the stronger check
SHIPPED = {kind: replace(bar, agreement=min(bar.agreement, 0.7)) for kind, bar in verify.SHIPPED.items()}
Array = np.ndarray[Any, Any]


@dataclass
class Subject:
    """The base or an adapter: what torch says of each row alone, then of all rows in one padded batch."""

    adapters: dict[str, float]
    head: Head | None
    in_float: Array  # [2 * rows, labels or hidden]
    on_grid: Array
    bare: Array | None = None  # what the head says of the untouched base's hidden states


def prove_any(job: Job, modules: Sequence[str], stage: Path, tokenizer: Any) -> tuple[dict[str, Any], float]:
    """`parity.prove` for what generates text; for heads and embeddings the same proof on scores."""
    if job.head is None and not job.base.encodes and job.own_head is None:
        return prove(job, modules, stage, tokenizer)
    rows = _rows(job, tokenizer)
    faults = Faults("The bundle does not answer as torch does, so it was not written")
    subjects = _ask_torch(job, modules, rows)
    answers, peak = _ask_bundle(stage, subjects, rows)
    exact: dict[str, Array] = {}
    if job.quant.bits:
        with verify.exact_copy(stage) as copy:
            exact, _ = _ask_bundle(copy, subjects, rows)
    reports = {}
    for name, subject in subjects.items():
        reports[name] = report = _compare(subject.on_grid, answers[name], subject.head)
        verify.judge(name, report, SHIPPED[job.quant.kind], faults)
        if job.quant.kind != "fp32":
            report["against_float"] = _compare(subject.in_float, answers[name], subject.head)
        if job.quant.bits:
            report["exact_activations"] = _compare(subject.on_grid, exact[name], subject.head)
            verify.judge(f"{name}, exact activations", report["exact_activations"], verify.EXACT, faults)
        if subject.bare is not None:
            report["effect_in_torch"] = float(np.abs(subject.in_float - subject.bare).max())
            report["effect"] = float(np.abs(answers[name] - answers.get(f"{name}, off", subject.bare)).max())
            verify.judge_effect(job.name or "the merged model", report, faults)
    replay = [{"ids": ids, "adapters": subject.adapters, "tokens": [int(answers[name][row].argmax())],
               "classifies": True} for name, subject in subjects.items() if subject.head is not None
              for row, ids in enumerate(rows)]
    if "base" not in subjects:  # it generates text: that is proven as for any other bundle
        base, base_peak = prove(replace(job, learned=None, name="", head=None), modules, stage, tokenizer)
        reports["base"], replay, peak = base["base"], [*base["replay"], *replay], max(peak, base_peak)
    faults.raise_if_any("If the adapter belongs to this base, this is a bug in edgeft: please report it.")
    return {"against": "torch" if job.quant.kind == "fp32" else f"torch on the same {job.quant.kind} weights",
            "base": reports["base"], "adapters": {job.name: reports[job.name]} if job.beside else {},
            "replay": replay}, peak


def _rows(job: Job, tokenizer: Any) -> list[list[int]]:
    texts = [text for text in job.artifact.record.get("samples", []) if isinstance(text, str)] or list(SAMPLES)
    rows = [tokenizer.backend_tokenizer.encode(text).ids[: min(LONGEST, job.context)] for text in texts]
    return [row for row in rows if row][:TEXTS] or [[0]]


def _ask_torch(job: Job, modules: Sequence[str], rows: list[list[int]]) -> dict[str, Subject]:
    """Subjects by name: "base" where it does not generate text, and what was learned."""
    head = job.head
    oracle = Oracle(_load(job, head), job.base.eos)
    inside = _inside(oracle.base, modules)
    subjects: dict[str, Subject] = {}
    bare = _ask(oracle.base.base_model, rows, head) if job.learned is not None else None
    if not (job.beside and job.base.task == "text-generation") and (job.beside or job.learned is None):
        subjects["base"] = _base_subject(job, modules, rows)
    if job.learned is None:
        return subjects
    oracle.attach(job.artifact, job.learned.method, job.learned.options)
    in_float = on_grid = _ask(_body(oracle, head), rows, head)
    if job.quant.kind != "fp32":
        if job.merge:
            oracle.fold()
            oracle.round(job.quant, inside)
        else:  # the grid is put on a fresh base, and the adapter on that: as it will run
            oracle = Oracle(_load(job, head), job.base.eos)
            oracle.round(job.quant, inside)
            oracle.attach(job.artifact, job.learned.method, job.learned.options)
        on_grid = _ask(_body(oracle, head), rows, head)
    name = job.name or "base"
    subjects[name] = Subject({job.name: 1.0} if job.beside else {}, head, in_float, on_grid, bare)
    return subjects


def _base_subject(job: Job, modules: Sequence[str], rows: list[list[int]]) -> Subject:
    """The bundle without an adapter: its own labels, or the embedding."""
    head = job.own_head
    oracle = Oracle(_load(job, head), job.base.eos)
    modules = _inside(oracle.base, modules)
    in_float = on_grid = _ask(_body(oracle, head), rows, head)
    if job.quant.kind != "fp32":
        oracle.round(job.quant, modules)
        on_grid = _ask(_body(oracle, head), rows, head)
    return Subject({}, head, in_float, on_grid)


def _load(job: Job, head: Head | None) -> PreTrainedModel:
    """The base as transformers loads it to classify with as many labels; a new head comes with the adapter."""
    gc.collect()
    config = AutoConfig.from_pretrained(job.base.folder, local_files_only=True, trust_remote_code=False)
    if head is not None:
        config.id2label = dict(enumerate(head.labels))
        config.label2id = {label: index for index, label in enumerate(head.labels)}
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        job.base.folder, config=config, dtype=torch.float32, local_files_only=True, trust_remote_code=False,
        ignore_mismatched_sizes=True)
    bare = head is None and job.artifact.kind == "peft" and not any(
        name.startswith(f"{model.base_model_prefix}.") for name in job.artifact.learned())
    return cast(PreTrainedModel, (model.base_model if bare else model).eval())


def _inside(model: PreTrainedModel, modules: Sequence[str]) -> list[str]:
    """Those of the graph's linear layers that this model has, by its own names; a bare encoder's have no prefix."""
    known = {name for name, _ in model.named_modules()}
    names = (name if name in known else name.removeprefix(f"{model.base_model_prefix}.") for name in modules)
    return [name for name in names if name in known]


def _body(oracle: Oracle, head: Head | None) -> nn.Module:
    """What is asked: the whole model where a head is compared, its body otherwise."""
    return oracle.model if head is not None else cast(nn.Module, oracle.base.base_model)


@torch.inference_mode()
def _ask(model: nn.Module, rows: list[list[int]], head: Head | None) -> Array:
    """Each row alone, then all in one padded batch: a classifier's logits, or a body's pooled states through `head`."""
    config: Any = model.config
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    if any(pad in row for row in rows):  # a decoder's classifier finds the last token by it
        pad = next(token for token in range(config.vocab_size) if not any(token in row for row in rows))
    found = []
    for batch in [*([row] for row in rows), rows]:
        width = max(map(len, batch))
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
        kept, config.pad_token_id = config.pad_token_id, pad
        output = model(input_ids=ids, attention_mask=mask)
        config.pad_token_id = kept
        if hasattr(output, "logits"):
            found.append(output.logits.float().numpy())
            continue
        hidden, counts = output.last_hidden_state.float().numpy(), [len(row) for row in batch]
        pooled = pool(hidden, counts, head.pooling if head else "mean")
        found.append(head.logits(pooled) if head else pooled)
    return np.concatenate(found)


def _ask_bundle(bundle: Path, subjects: dict[str, Subject], rows: list[list[int]]) -> tuple[dict[str, Array], float]:
    """The same of the shipped runner; `NAME, off` is an adapter at scale 0 under its own head."""
    asked = {name: subject.adapters for name, subject in subjects.items()}
    asked |= {f"{name}, off": dict.fromkeys(subject.adapters, 0.0) for name, subject in subjects.items()
              if subject.adapters}
    items = [{"rows": batch, "adapters": adapters} for adapters in asked.values()
             for batch in [*([row] for row in rows), rows]]
    found = verify.probe(bundle, items)
    each = len(rows) + 1
    answers = {name: np.concatenate([found[f"{index}.rows"] for index in range(place * each, (place + 1) * each)])
               for place, name in enumerate(asked)}
    return answers, float(found.metadata["peak_mib"])


def _compare(wanted: Array, found: Array, head: Head | None) -> dict[str, Any]:
    """The report of one subject, in the form of `verify.compare`."""
    cases = [verify.Case([], [], row[None], [int(row.argmax())], row[None]) for row in wanted]
    rows = [row[None] for row in found]
    report = verify.compare(cases, verify.Answers([[int(row.argmax())] for row in found], rows, rows))
    report["of"] = "labels"
    if head is None:
        alike = (wanted * found).sum(-1) / np.maximum(np.linalg.norm(wanted, axis=-1) * np.linalg.norm(found, axis=-1),
                                                      1e-12)
        report |= {"of": "embeddings", "agreement": float((alike >= ALIKE).mean()),
                   "greedy_equal": int((alike >= ALIKE).sum())}
    return report
