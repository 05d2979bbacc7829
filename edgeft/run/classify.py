"""Labels with scores, and embeddings: the graph's hidden states, pooled, through a head; all in numpy."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from edgeft.contract.bundle import HEAD_FILE
from edgeft.contract.data import read_records
from edgeft.contract.errors import EdgeftError, Faults, UsageError
from edgeft.contract.heads import Head, encode_limited, pool, read_head
from edgeft.contract.memory import peak_mib

from .tokenizer import refusing

if TYPE_CHECKING:
    from pathlib import Path

    from .model import Model

HIDDEN, OWN = "hidden", HEAD_FILE
TOKENS_PER_PASS = 4096  # padded tokens of a batch that go through the graph at once
Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Answer:
    """What a bundle makes of one text."""

    scores: list[tuple[str, float]]  # likeliest label first; empty if no head is in use
    embedding: np.ndarray[Any, Any]  # of length 1
    tokens: list[int]
    whole: int  # tokens that the text had before it was cut to the context
    adapters: dict[str, float]
    seconds: float

    @property
    def note(self) -> str:
        """What must be said of a text that was cut."""
        if self.whole <= len(self.tokens):
            return ""
        return f"the text has {self.whole} tokens and the bundle's context is {len(self.tokens)}: the rest was cut off"

    def to_json(self) -> dict[str, Any]:
        """What `edgeft run --json` prints."""
        said: dict[str, Any] = {"text": self.scores[0][0] if self.scores else ""}
        if self.scores:
            said["labels"] = [{"label": label, "score": score} for label, score in self.scores]
        else:
            said["embedding"] = self.embedding.tolist()
        return {**said, "tokens": [], "prompt_tokens": self.tokens, "truncated": self.whole > len(self.tokens),
                "adapters": self.adapters, "prefill_tokens_per_s": round(len(self.tokens) / max(self.seconds, 1e-9), 2),
                "decode_tokens_per_s": None, "peak_rss_mib": round(peak_mib(), 1)}

    def describe(self, most: int = 5) -> str:
        """The best labels with their scores, or the first numbers of the embedding."""
        if not self.scores:
            first = ", ".join(f"{value:.4f}" for value in self.embedding[:6])
            return f"embedding of {len(self.embedding)} numbers: {first}, ..."
        width = max(len(label) for label, _ in self.scores[:most])
        return "\n".join(f"{label.ljust(width)}  {score:6.1%}" for label, score in self.scores[:most])


BROKEN = "The model's output is not a number (NaN or infinite): the bundle or an adapter is broken."


def head_of(model: Model, adapters: Mapping[str, float]) -> Head | None:
    """The head that a request uses: its adapter's, else the bundle's own; None if there is none."""
    found = {name: head for name in adapters if (head := read_head(model.shelf.load(name).tensors, _width(model)))}
    if len(found) > 1:
        raise UsageError(f"Adapters {' and '.join(found)} each have labels of their own; a text is given one of them.")
    if found:
        return next(iter(found.values()))
    if OWN in model.bundle.manifest["files"]:
        return read_head(model.bundle.tensors(model.bundle.folder / OWN), _width(model))
    return None


def _heads(model: Model, adapters: Rows) -> list[Head | None]:
    """The head of each text; each is read and checked once."""
    known = {frozenset(used): used for used in adapters}
    heads = {names: head_of(model, used) for names, used in known.items()}
    return [heads[frozenset(used)] for used in adapters]


def task_of(model: Model, adapters: Mapping[str, float]) -> str:
    """What a request with these adapters is: text-classification, text-generation or feature-extraction."""
    if HIDDEN in _outputs(model) and head_of(model, adapters):
        return "text-classification"
    return "text-generation" if "logits" in _outputs(model) else "feature-extraction"


def check_generates(model: Model, adapters: Mapping[str, float]) -> None:
    """UsageError unless text can be generated with these adapters."""
    if "logits" not in _outputs(model):
        raise UsageError(f"{model.bundle.folder}: generates no text; it is for {task_of(model, {})}. "
                         "`edgeft run`, or classify() and embed() in Python, ask it.")
    if task_of(model, adapters) == "text-classification":
        raise UsageError(f"Adapter {' + '.join(adapters)} classifies; it generates no text. `edgeft run`, or "
                         "classify() in Python, asks it.")


def answer(model: Model, texts: Sequence[str], adapters: Rows) -> list[Answer]:
    """Every text with its own adapters: labels with scores where a head is in use, and the embedding."""
    if len(texts) != len(adapters):
        raise UsageError(f"{len(texts)} texts and {len(adapters)} sets of adapters do not match.")
    with refusing(f"{model.bundle.folder}: its tokenizer cannot encode this"):
        encoded = [encode_limited(model.tokenizer, text, model.context) for text in texts]
    if any(not ids for ids, _ in encoded):
        raise UsageError("A text is empty: there is nothing to classify.")
    heads = _heads(model, adapters)
    start = time.perf_counter()
    answers: dict[int, Answer] = {}
    rows = [ids for ids, _ in encoded]
    for places, hidden, counts in _passes(model, rows, adapters):
        vectors = pool(hidden, counts, _embedding_pooling(model))
        seconds = (time.perf_counter() - start) / len(places)
        for row, place in enumerate(places):
            head, vector = heads[place], vectors[row]
            if not np.isfinite(vector).all():
                raise EdgeftError(BROKEN)
            scores = _scores(head, hidden[row : row + 1], counts[row : row + 1]) if head else []
            answers[place] = Answer(scores, vector / max(float(np.linalg.norm(vector)), 1e-12), rows[place],
                                    encoded[place][1], dict(adapters[place]), seconds)
        start = time.perf_counter()
    return [answers[place] for place in range(len(texts))]


def classify(model: Model, texts: Sequence[str], adapters: Rows) -> list[list[tuple[str, float]]]:
    """(label, score) of each text, likeliest first; the scores of a text add up to 1."""
    for used, head in zip(adapters, _heads(model, adapters), strict=True):
        if head is None:
            raise UsageError(f"{model.bundle.folder}: has no classification head"
                             + (f", and adapter {' + '.join(used)} brings none." if used else "; name an adapter."))
    answers = answer(model, texts, adapters)
    _warn(answers)
    return [item.scores for item in answers]


def embed(model: Model, texts: Sequence[str], adapters: Rows) -> np.ndarray[Any, Any]:
    """Embeddings [n, hidden], float32, of length 1: the mean of an encoder's hidden states, a decoder's last one."""
    answers = answer(model, texts, adapters)
    _warn(answers)
    return np.stack([item.embedding for item in answers]).astype(np.float32)


def _warn(answers: Sequence[Answer]) -> None:
    for item in answers:
        if item.note:
            warnings.warn(item.note, stacklevel=4)


def evaluate(model: Model, data: Path, used: Mapping[str, float]) -> dict[str, Any]:
    """Nats per example and accuracy over lines of text and label."""
    records = read_records(data)
    head = head_of(model, used)
    if head is None:
        raise UsageError(f"{data}: lines with 'label' are for classifiers, and "
                         + (f"adapter {' + '.join(used)} is none." if used else "no classifier is in use."))
    faults = Faults(f"{data}: has labels that were not trained")
    for label in sorted({record["label"] for record in records} - set(head.labels)):
        faults.add(repr(label))
    faults.raise_if_any(f"The head knows {len(head.labels)} labels.")
    answers = answer(model, [record["text"] for record in records], [used] * len(records))
    scores = [dict(item.scores)[record["label"]] for item, record in zip(answers, records, strict=True)]
    cut = sum(bool(item.note) for item in answers)
    if cut:
        print(f"note: {data}: {cut} of {len(records)} texts are longer than {model.context} tokens and were cut there",
              file=sys.stderr)
    right = [item.scores[0][0] == record["label"] for item, record in zip(answers, records, strict=True)]
    return {"loss": float(-np.log(np.maximum(scores, 1e-38)).mean()), "accuracy": float(np.mean(right)),
            "examples": len(records), "truncated": cut, "adapters": dict(used)}


def raw_outputs(model: Model, rows: Sequence[list[int]], adapters: Mapping[str, float]) -> np.ndarray[Any, Any]:
    """What the exporter compares: logits [n, labels] of one padded batch; without a head the pooled hidden states."""
    head = head_of(model, adapters)
    hidden, counts = hidden_states(model, rows, [adapters] * len(rows)), [len(ids) for ids in rows]
    return head.logits(pool(hidden, counts, head.pooling)) if head \
        else pool(hidden, counts, _embedding_pooling(model))


def hidden_states(model: Model, rows: Sequence[list[int]], adapters: Rows) -> np.ndarray[Any, Any]:
    """One pass: rows of token ids, padded on the right, to hidden states [n, longest, hidden]."""
    if HIDDEN not in _outputs(model):
        raise EdgeftError(f"{model.bundle.folder}: its graph does not give hidden states. Export it again.")
    width = max(map(len, rows))
    ids = np.zeros((len(rows), width), np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    feeds = {"input_ids": ids, "attention_mask": mask}
    for layer, (heads, size) in enumerate(model.graphs.layers):
        for part in ("key", "value"):
            feeds[f"past_key_values.{layer}.{part}"] = np.zeros((len(rows), heads, 0, size), np.float32)
    model.shelf.check(adapters)
    slots = model.shelf.slots(adapters)
    session = model.graphs.for_batch(scaled=any(name.endswith(".scale") for name in slots.rows))
    if any(model.shelf.prefix(row) for row in adapters):
        raise UsageError("A soft prompt is for generating text; it stands before no text that is classified.")
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in
              {**feeds, **session.fill({**slots.rows, **slots.shared})}.items()}
    options = ort.RunOptions()
    options.only_execute_path_to_fetches = True  # a decoder's own head stays out of it
    found = session.ort.run_with_ort_values([HIDDEN], values, options)
    return np.asarray(found[0].numpy())


def _passes(model: Model, rows: Sequence[list[int]],
            adapters: Rows) -> Iterator[tuple[list[int], np.ndarray[Any, Any], list[int]]]:
    """Batches of texts of like length: their places, hidden states and token counts."""
    alone = bool(model.graphs.layers) and not model.graphs.shared and model.graphs.padding != "anywhere"
    batch: list[int] = []
    for place in [*sorted(range(len(rows)), key=lambda place: -len(rows[place])), None]:
        full = batch and (place is None or len(rows[batch[0]]) * (len(batch) + 1) > TOKENS_PER_PASS
                          or (alone and len(rows[place]) != len(rows[batch[0]])))
        if full:
            hidden = hidden_states(model, [rows[item] for item in batch], [adapters[item] for item in batch])
            yield batch, hidden, [len(rows[item]) for item in batch]
            batch = []
        if place is not None:
            batch.append(place)


def _scores(head: Head, hidden: np.ndarray[Any, Any], counts: Sequence[int]) -> list[tuple[str, float]]:
    logits = head.logits(pool(hidden, counts, head.pooling))[0].astype(np.float64)
    if not np.isfinite(logits).all():
        raise EdgeftError(BROKEN)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return [(head.labels[index], float(shares[index])) for index in np.argsort(-shares, kind="stable")]


def _embedding_pooling(model: Model) -> str:
    return "last" if model.graphs.layers else "mean"


def _outputs(model: Model) -> dict[str, Any]:
    return model.graphs.outputs


def _width(model: Model) -> int:
    shape = _outputs(model).get(HIDDEN)
    return int(shape[2]) if shape else 0
