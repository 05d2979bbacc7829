"""Loss of a bundle on data lines, measured with the runner itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.contract.data import Example, encode, kind_of, read_records, segments, windows
from edgeft.contract.errors import EdgeftError, UsageError

from . import classify as classes
from .model import Model


def evaluate(bundle: Path, data: Path, probe: Path | None, adapters: Mapping[str, float] | None,
             task: str | None = None) -> dict[str, Any]:
    """Nats per completion token; with a probe also `forgetting`: tuned minus base, in nats per token.

    `task` says whose prompt template phrases the data, where there are several. Of lines with labels: nats per example
    and accuracy.
    """
    records = read_records(data)
    probe_records = read_records(probe) if probe else []
    model = Model(bundle)
    used = model.adapters_for(adapters)
    if kind_of(records[0]) == "label":
        if probe:
            raise UsageError("--probe is for language models, and lines with 'label' are for classifiers.")
        return classes.evaluate(model, data, used)
    classes.check_generates(model, used)
    examples = tokenize(model, records, used, task)
    loss, tokens = mean_loss(model, examples, used)
    result: dict[str, Any] = {"loss": loss, "tokens": tokens, "adapters": used}
    if probe_records:
        if not used:
            raise UsageError("--probe compares an adapter with its base, and no adapter is in use. "
                             "For a merged bundle compare the runs before export: `edgeft eval RUN --probe`.")
        known = tokenize(model, probe_records, {})
        base, _ = mean_loss(model, known, {})
        tuned, count = mean_loss(model, known, used)
        result |= {"forgetting": tuned - base, "probe_tokens": count, "probe_base_loss": base,
                   "probe_loss": tuned}
    return result


def tokenize(model: Model, records: Sequence[dict[str, Any]], adapters: Mapping[str, float],
             task: str | None = None) -> list[Example]:
    """Token ids with loss masks, phrased as these adapters are prompted; long texts are split."""
    prompt = model.prompt_format(adapters)
    template = prompt.template(task) if task or kind_of(records[0]) == "pair" else ""
    eos = min(model.eos) if model.eos else None
    examples = [encode(model.tokenizer, segments(record, prompt.separator, model.render, template), eos)
                for record in records]
    if kind_of(records[0]) == "text":
        return [part for example in examples for part in windows(example, model.context)]
    longest = max(len(example.ids) for example in examples)
    if longest > model.context:
        raise EdgeftError(f"The longest line has {longest} tokens, and the bundle's context is {model.context}.")
    return examples


def mean_loss(model: Model, examples: Sequence[Example], adapters: Mapping[str, float]) -> tuple[float, int]:
    """(nats per token that carries loss, how many such tokens)."""
    total, tokens = 0.0, 0
    for example in examples:
        lanes = model.lanes([adapters], len(example.ids))
        logits = lanes.forward(np.asarray([example.ids]))[0, :-1]
        lanes.close()
        keep = np.asarray(example.mask[1:])
        rows, targets = logits[keep].astype(np.float64), np.asarray(example.ids[1:])[keep]
        shifted = rows - rows.max(-1, keepdims=True)
        total -= float((shifted[np.arange(len(targets)), targets] - np.log(np.exp(shifted).sum(-1))).sum())
        tokens += len(targets)
    return total / max(tokens, 1), tokens
