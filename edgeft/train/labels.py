"""`{"text", "label"}` lines: the labels of a run, and texts as token ids with the index of their label."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.contract.data import Example, kind_of, read_records
from edgeft.contract.errors import Faults, UsageError, did_you_mean
from edgeft.contract.heads import encode_limited

from .launch import is_main

if TYPE_CHECKING:
    from .base import Base


@dataclass(frozen=True)
class LabelExample(Example):
    """One text; its single unit of loss stands at its last token, so that counts are of examples."""

    label: int = 0

    @property
    def prompt(self) -> list[int]:
        """The whole text is what the model is asked."""
        return self.ids


def labels_of(paths: Iterable[Path]) -> tuple[str, ...]:
    """The labels in these files, sorted; empty where none has any. One run does not mix them with other data."""
    files = list(paths)
    labelled = [path for path in files if _has_labels(path)]
    if not labelled:
        return ()
    if len(labelled) < len(files):
        other = next(path for path in files if path not in labelled)
        raise UsageError(f"{other}: has no labels, and {labelled[0]} has. A run trains a classifier or a language "
                         "model, not both: make two runs on one base.")
    labels = tuple(sorted({record["label"] for path in files for record in read_records(path)}))
    if len(labels) < 2:
        raise UsageError(f"{files[0]}: every line has the label {labels[0]!r}; a classifier needs two or more.")
    return labels


def _has_labels(path: Path) -> bool:
    """By the first line alone; what is wrong with a file is told by whoever reads it."""
    try:
        with path.open(encoding="utf-8") as stream:
            return kind_of(json.loads(next(line for line in stream if line.strip()))) == "label"
    except (OSError, ValueError, RecursionError, StopIteration):
        return False


def encode_labels(records: Sequence[dict[str, Any]], path: Path, base: Base, length: int) -> list[Example]:
    """Every line as a LabelExample; a text longer than `length` tokens is cut, and that is said."""
    if not base.labels:
        raise UsageError(f"{path}: lines with 'label' are for classification, and {base.id} is used as a language "
                         "model. Write them as prompt and completion.")
    index = {label: number for number, label in enumerate(base.labels)}
    faults = Faults(f"{path}: has labels that were not trained")
    for label in sorted({record["label"] for record in records} - index.keys()):
        faults.add(f"{label!r}.{did_you_mean(label, list(base.labels)) if len(base.labels) < 10 else ''}")
    faults.raise_if_any(f"The run knows {len(base.labels)} labels, those of its --data.")
    found: list[Example] = []
    cut = 0
    for record in records:
        ids, whole = encode_limited(base.tokenizer, record["text"], length)
        cut += whole > len(ids)
        if not ids:
            faults.add(f"an empty text with label {record['label']!r}")
        found.append(LabelExample(ids, [False] * (len(ids) - 1) + [True], label=index[record["label"]]))
    faults.subject = f"{path}: has texts without a token"
    faults.raise_if_any()
    if cut and is_main():
        print(f"note: {path}: {cut} of {len(records)} texts are longer than {length} tokens and were cut there",
              file=sys.stderr, flush=True)
    return found
