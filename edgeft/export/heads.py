"""The classification head of an export: what was learned of it, else the base's own, apart from the graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.contract.artifact import Artifact
from edgeft.contract.errors import Faults, UsageError
from edgeft.contract.files import read_json
from edgeft.contract.heads import ENCODERS, SOFT_PROMPTS, Head, artifact_labels, config_labels, layout
from edgeft.contract.slots import Array
from edgeft.contract.tensors import write_tensors

from .adapters import Learned, merge_weight
from .base import Base

FILE = "head.safetensors"  # of a bundle whose base classifies by itself


def split_head(artifact: Artifact, learned: Learned | None, base: Base) -> tuple[Learned | None, Head | None]:
    """What was learned of the graph, and the head that the artifact brings; None if it is no classifier."""
    if learned is None:
        return None, own_head(base)
    if artifact.peft_type in SOFT_PROMPTS and base.config.model_type in ENCODERS:
        raise UsageError(f"{artifact.folder}: a soft prompt ({artifact.peft_type}) on an encoder "
                         f"({base.config.model_type}) cannot be run: its attention goes both ways, so no prefix of "
                         "keys and values equals it.")
    labels = artifact_labels(artifact, read_json(base.folder / "config.json"))
    if not labels:
        return _whole_names(learned, base), None
    modules = tuple(f"{module}." for module in layout(base.config.model_type).modules)
    body = {name: array for name, array in learned.tensors.items() if not name.startswith(modules)}
    return replace(learned, tensors=body), _head(str(artifact.folder), labels, base, learned)


def _whole_names(learned: Learned, base: Base) -> Learned:
    """PEFT names the modules of a bare encoder (FEATURE_EXTRACTION) without the prefix that the whole model has."""
    prefix = f"{base.model_class.base_model_prefix}."
    if not base.encodes or any(name.startswith(prefix) for name in learned.tensors):
        return learned
    return replace(learned, tensors={prefix + name: array for name, array in learned.tensors.items()})


def own_head(base: Base) -> Head | None:
    """The head that a base has itself; None if it was not made to classify."""
    labels = config_labels(read_json(base.folder / "config.json"))
    return _head(base.name, labels, base, None) if labels else None


def _head(who: str, labels: tuple[str, ...], base: Base, learned: Learned | None) -> Head:
    place = layout(base.config.model_type)
    faults = Faults(f"{who}: its classification head cannot be exported")
    if getattr(base.config, "problem_type", None) in ("regression", "multi_label_classification") or len(labels) < 2:
        faults.add("it does not choose one of several labels",
                   declared=getattr(base.config, "problem_type", None), found=f"{len(labels)} labels")
    if base.config.model_type == "deberta-v2" and base.config.pooler_hidden_act != "gelu":
        faults.add("pooler_hidden_act", declared=base.config.pooler_hidden_act, found="only gelu is computed")
    weights: list[Array] = []
    biases: list[Array | None] = []
    for module in place.modules:
        weight = _tensor(f"{module}.weight", base, learned)
        if weight is None:
            faults.add(f"{module}.weight: is neither in what was learned nor in the base: it was random")
            continue
        weights.append(weight)
        biases.append(_tensor(f"{module}.bias", base, learned))
    if weights and not faults.lines and len(weights[-1]) != len(labels):
        faults.add("labels", declared=f"{len(labels)} names", found=f"{len(weights[-1])} outputs")
    faults.raise_if_any("Name the base that it was trained on with --base.")
    return Head(place.pooling, tuple(weights), tuple(biases), tuple(activation for _, activation in place.layers),
                labels)


def _tensor(name: str, base: Base, learned: Learned | None) -> Array | None:
    if learned is not None and name in learned.tensors:
        return learned.tensors[name]
    if name not in base.weights:
        return None
    own = np.asarray(base.weights[name], np.float32)
    return own if learned is None else np.asarray(merge_weight(learned, name, own), np.float32)


def write_head(folder: Path, head: Head) -> None:
    """A bundle's own head."""
    write_tensors(folder / FILE, head.tensors(), head.metadata())


def describe_head(head: Head | None) -> dict[str, Any]:
    """What an adapter's entry in bundle.json says of its head."""
    return {"labels": list(head.labels)} if head else {}
