"""Loss of a bundle on data lines, and what its adapter forgot, measured with the runner itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.contract.data import Example, encode, kind_of, read_records, segments, windows
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.forgetting import WINDOW, as_evaluated, compare_losses, compare_pairs, read_pairs, with_loss

from . import classify as classes
from .adapters import length_of
from .model import Model

Array = np.ndarray[Any, Any]
ROWS = 128  # tokens whose logits are worked on at once, in float64
Adapters = Mapping[str, float]


def evaluate(bundle: Path, data: Path | None, probe: Path | None, adapters: Adapters | None,
             task: str | None = None, pairs: Path | None = None) -> dict[str, Any]:
    """Nats per completion token on `data`; on a probe `forgetting`: tuned minus base, in nats per token, with interval
    and KL; grammar `pairs`.

    `task` says whose prompt template phrases the data, where there are several. Of lines with labels: nats per example
    and accuracy.
    """
    records = read_records(data) if data else []
    known = read_records(probe) if probe else []
    model = Model(bundle)
    used = model.adapters_for(adapters)
    if data and kind_of(records[0]) == "label":
        if probe or pairs:
            raise UsageError("--probe and --pairs are for language models, and lines with 'label' are for classifiers.")
        return classes.evaluate(model, data, used)
    classes.check_generates(model, used)
    result: dict[str, Any] = {}
    if data:
        loss, tokens = mean_loss(model, tokenize(model, records, used, task), used)
        result = {"loss": loss, "tokens": tokens}
    result["adapters"] = used
    if probe:
        result |= as_evaluated(forgetting(model, probe, known, used))
    if pairs:
        sentences = read_pairs(pairs, model.tokenizer, min(model.eos, default=None),
                               model.context - soft_tokens(model, used))
        base = line_losses(model, sentences, {}) if used else None
        result["pairs"] = compare_pairs(pairs, base, line_losses(model, sentences, used))
    return result


def forgetting(model: Model, probe: Path, records: Sequence[dict[str, Any]], used: Adapters) -> dict[str, Any]:
    """What adapters in use forgot of a probe's lines, against the bare base of the same bundle."""
    if not used:
        raise UsageError("--probe compares an adapter with its base, and no adapter is in use. "
                         "For a merged bundle compare the runs before export: `edgeft eval RUN --probe`.")
    if kind_of(records[0]) != "text":
        raise UsageError(f"{probe}: a probe for forgetting holds lines of {{\"text\": ...}}.")
    length = min(WINDOW, model.context - soft_tokens(model, used))
    lines = with_loss(probe, [tokenize(model, [record], {}, window=length) for record in records])
    sums = np.zeros((3, len(lines)))
    examples = [example for line in lines for example in line]
    owner = [index for index, line in enumerate(lines) for _ in line]
    for index, example, base, tuned in zip(owner, examples, log_probabilities(model, examples, {}),
                                           log_probabilities(model, examples, used), strict=True):
        kl = sum(_divergence(base[at : at + ROWS], tuned[at : at + ROWS]) for at in range(0, len(base), ROWS))
        sums[:, index] += [loss_of(example, base), loss_of(example, tuned), kl]
    tokens = [sum(sum(example.mask) for example in line) for line in lines]
    return compare_losses(tokens, *sums.tolist())


def soft_tokens(model: Model, used: Adapters) -> int:
    """Tokens of the context that these adapters' soft prompt takes."""
    return length_of(model.shelf.prefix(used))


def _divergence(base: Array, tuned: Array) -> float:
    """KL(base || tuned), summed over rows of log-probabilities."""
    return float((np.exp(base.astype(np.float64)) * (base.astype(np.float64) - tuned)).sum())


def tokenize(model: Model, records: Sequence[dict[str, Any]], adapters: Adapters, task: str | None = None,
             window: int = 0) -> list[Example]:
    """Token ids with loss masks, phrased as these adapters are prompted; texts longer than `window` are split."""
    prompt = model.prompt_format(adapters)
    template = prompt.template(task) if task or kind_of(records[0]) == "pair" else ""
    eos = min(model.eos) if model.eos else None
    examples = [encode(model.tokenizer, segments(record, prompt.separator, model.render, template), eos)
                for record in records]
    if kind_of(records[0]) == "text":
        length = min(window or model.context, model.context)
        return [part for example in examples for part in windows(example, length)]
    longest = max(len(example.ids) for example in examples)
    if longest > model.context:
        raise EdgeftError(f"The longest line has {longest} tokens, and the bundle's context is {model.context}.")
    return examples


def mean_loss(model: Model, examples: Sequence[Example], adapters: Adapters) -> tuple[float, int]:
    """(nats per token that carries loss, how many such tokens)."""
    tokens = sum(sum(example.mask) for example in examples)
    return sum(line_losses(model, examples, adapters)) / max(tokens, 1), tokens


def line_losses(model: Model, examples: Sequence[Example], adapters: Adapters) -> list[float]:
    """Summed negative log-likelihood of each example, in nats."""
    return [loss_of(example, found) for example, found in
            zip(examples, log_probabilities(model, examples, adapters), strict=True)]


def loss_of(example: Example, found: Array) -> float:
    """Summed negative log-likelihood of an example's tokens with loss."""
    targets = np.asarray(example.ids[1:])[np.asarray(example.mask[1:])]
    return -float(found[np.arange(len(targets)), targets].sum(dtype=np.float64))


def log_probabilities(model: Model, examples: Sequence[Example], adapters: Adapters) -> Iterator[Array]:
    """Of each example, the log-probabilities [tokens with loss, vocabulary]; one cache serves them all."""
    with closing(_Rows(model, adapters, max(len(example.ids) for example in examples))) as rows:
        for example in examples:
            found = rows.logits(example.ids)[:-1][np.asarray(example.mask[1:])]
            for at in range(0, len(found), ROWS):
                part = found[at : at + ROWS].astype(np.float64)
                part -= part.max(-1, keepdims=True)
                found[at : at + ROWS] = part - np.log(np.exp(part).sum(-1, keepdims=True))
            yield found


class _Rows:
    """One row of the runner that takes one text after another."""

    def __init__(self, model: Model, adapters: Adapters, longest: int) -> None:
        self.model, self.adapters, self.longest = model, adapters, longest
        self.lanes: Any = None

    def logits(self, ids: Sequence[int]) -> Array:
        """Logits [tokens, vocabulary] of a text behind the adapters' soft prompt, if they have one."""
        if self.lanes is None:
            self.lanes = self.model.lanes([self.adapters], self.longest)
            self.first = int(self.lanes.lengths[0])
        found: Array = self.lanes.forward(np.asarray([ids]))[0]
        if self.lanes.joins:
            self.lanes.rewind(0, self.first)
        else:  # a cache that grows cannot be wound back
            self.close()
        return found

    def close(self) -> None:
        if self.lanes is not None:
            self.lanes.close()
        self.lanes = None
