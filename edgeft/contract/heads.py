"""Classification heads: where they stand in each architecture, their file format, and what they compute.

A graph ends at hidden states; the head is an adapter's own, or the bundle's, so adapters with different labels share
one base. Tensors `head.{i}.weight [out, in]` and `head.{i}.bias [out]`, and the metadata `head`: JSON with `pooling`
(first, last or mean), `activations` (one per layer) and `labels`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .artifact import Artifact
from .errors import Faults
from .files import read_json
from .slots import Array, Tensors
from .tensors import TensorFile

HEAD = "head"
POOLINGS = ("first", "last", "mean")


@dataclass(frozen=True)
class Layout:
    """Where an architecture keeps its head: the row it reads, then modules with the activation behind each."""

    pooling: str
    layers: tuple[tuple[str, str], ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """The head's linear layers, by their names in the whole model."""
        return tuple(module for module, _ in self.layers)


ENCODERS = {
    "bert": Layout("first", (("bert.pooler.dense", "tanh"), ("classifier", ""))),
    "roberta": Layout("first", (("classifier.dense", "tanh"), ("classifier.out_proj", ""))),
    "distilbert": Layout("first", (("pre_classifier", "relu"), ("classifier", ""))),
    "deberta-v2": Layout("first", (("pooler.dense", "gelu"), ("classifier", ""))),
}
DECODER = Layout("last", (("score", ""),))
# PEFT methods that put rows before a sequence: no prefix of keys and values equals them where attention goes both ways
SOFT_PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "ADAPTION_PROMPT")


def layout(model_type: str) -> Layout:
    """The head of an architecture; every decoder has the same."""
    return ENCODERS.get(model_type, DECODER)


def max_tokens(config: Any) -> int:
    """Tokens of one text; RoBERTa numbers its positions from behind the padding's."""
    declared = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048
    return int(declared) - (int(config.pad_token_id or 0) + 1 if config.model_type == "roberta" else 0)


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))), np.float32)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "": lambda x: x, "tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "gelu": _gelu}


@dataclass(frozen=True)
class Head:
    """Linear layers from one pooled hidden state to a score per label."""

    pooling: str
    weights: tuple[Array, ...]  # [out, in]
    biases: tuple[Array | None, ...]
    activations: tuple[str, ...]
    labels: tuple[str, ...]

    def logits(self, pooled: Array) -> Array:
        """Pooled hidden states [n, hidden] to [n, labels]."""
        x = pooled
        for weight, bias, activation in zip(self.weights, self.biases, self.activations, strict=True):
            x = x @ weight.T
            x = ACTIVATIONS[activation](x if bias is None else x + bias)
        return x

    def tensors(self) -> Tensors:
        """As they are stored."""
        found: Tensors = {}
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            found[f"{HEAD}.{index}.weight"] = np.ascontiguousarray(weight, np.float32)
            if bias is not None:
                found[f"{HEAD}.{index}.bias"] = np.ascontiguousarray(bias, np.float32)
        return found

    def metadata(self) -> dict[str, str]:
        """What the file's header says of it."""
        return {HEAD: json.dumps({"pooling": self.pooling, "activations": list(self.activations),
                                  "labels": list(self.labels)})}


def read_head(file: TensorFile, hidden: int) -> Head | None:
    """The head in an adapter's or a bundle's file, checked against the graph's hidden size; None if it has none."""
    names = [name for name in file if name.startswith(f"{HEAD}.")]
    if not names and HEAD not in file.metadata:
        return None
    faults = Faults(f"{file.path.name}: its classification head cannot be used")
    try:
        said = json.loads(file.metadata.get(HEAD, "{}"))
        pooling, activations, labels = said["pooling"], list(said["activations"]), list(said["labels"])
        if pooling not in POOLINGS or not set(activations) <= set(ACTIVATIONS) or not activations:
            raise ValueError(f"pooling {pooling!r}, activations {activations!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        faults.add(f"metadata 'head': {type(error).__name__} {error}")
        faults.raise_if_any("Export it again.")
    width = hidden
    weights, biases = [], []
    for index in range(len(activations)):
        name = f"{HEAD}.{index}"
        if f"{name}.weight" not in file or len(file.shape(f"{name}.weight")) != 2:
            faults.add(f"{name}.weight: is missing, or is no matrix")
            break
        out, found = file.shape(f"{name}.weight")
        if found != width:
            faults.add(f"{name}.weight", declared=f"[{out}, {width}]", found=[out, found])
        bias = file.get(f"{name}.bias")
        if bias is not None and bias.shape != (out,):
            faults.add(f"{name}.bias", declared=[out], found=list(bias.shape))
        weights.append(file[f"{name}.weight"])
        biases.append(bias)
        width = out
    if weights and (len(labels) != width or not all(isinstance(label, str) for label in labels)):
        faults.add("labels", declared=f"{width} texts", found=len(labels))
    faults.lines += [f"{name}: holds NaN or infinite numbers" for name in names if not np.isfinite(file[name]).all()]
    faults.raise_if_any("Export it again.")
    return Head(pooling, tuple(weights), tuple(biases), tuple(activations), tuple(labels))


def pool(hidden: Array, counts: Sequence[int], pooling: str) -> Array:
    """Hidden states [n, seq, hidden], of which row i has counts[i] real ones on the left, to [n, hidden]."""
    rows, last = np.arange(len(hidden)), np.asarray(counts) - 1
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return np.asarray(hidden[rows, last])
    keep = (np.arange(hidden.shape[1]) <= last[:, None])[..., None]
    return np.asarray((hidden * keep).sum(1) / np.asarray(counts)[:, None], np.float32)


def encode_limited(tokenizer: Any, text: str, limit: int) -> tuple[list[int], int]:
    """Token ids of a text, cut to `limit` with its special tokens kept, and how many it had before."""
    from .data import encode_text

    ids = encode_text(tokenizer, text)
    if len(ids) <= limit:
        return ids, len(ids)
    tokenizer.enable_truncation(limit)
    try:
        return encode_text(tokenizer, text)[:limit], len(ids)
    finally:
        tokenizer.no_truncation()


def artifact_labels(artifact: Artifact, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels that an artifact tells apart; empty where it is no classifier.

    A stranger's PEFT folder does not name them: then they are the base's own, if their number is right, or LABEL_i.
    """
    if artifact.record.get("labels"):
        return tuple(artifact.record["labels"])
    if artifact.kind == "model":
        return config_labels(read_json(artifact.folder / "config.json"))
    if artifact.peft_config.get("task_type") != "SEQ_CLS":
        return ()
    ends = {f"{place.modules[-1]}.weight" for place in (DECODER, *ENCODERS.values())}
    learned = artifact.learned()
    count = next((len(learned[name]) for name in sorted(ends) if name in learned), 0)
    own = config_labels(config)
    return own if len(own) == count else tuple(f"LABEL_{index}" for index in range(count))


def config_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels in the config.json of a classifier; empty for other models."""
    if not str((config.get("architectures") or [""])[0]).endswith("ForSequenceClassification"):
        return ()
    named = config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}
    return tuple(str(named[key]) for key in sorted(named, key=int))
