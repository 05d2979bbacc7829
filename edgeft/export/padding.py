"""Where rows of a batch may be padded in a graph that others made: tried on the graph itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

FIRST, COUNT = 3, 6  # tokens of the first pass, and of both


def exact_padding(file: Path, layers: Sequence[tuple[int, int]], vocabulary: int) -> str:
    """For a cache that grows: "anywhere", "left" or "nowhere", as `trace` tells it of a model.

    A row that is padded in its first pass must go on as it does without that column.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    ids = np.arange(COUNT, dtype=np.int64)[None] % (vocabulary - 2) + 1

    def last(ids: Any, mask: Any, first: int) -> Any:
        past = {f"past_key_values.{layer}.{part}": np.zeros((1, heads, 0, size), np.float32)
                for layer, (heads, size) in enumerate(layers) for part in ("key", "value")}
        names = ["logits", *(name.replace("past_key_values", "present") for name in past)]
        found = session.run(names, {"input_ids": ids[:, :first], "attention_mask": mask[:, :first], **past})
        return session.run(["logits"], {"input_ids": ids[:, first:], "attention_mask": mask,
                                        **dict(zip(past, found[1:], strict=True))})[0]

    def exact(column: int) -> bool:
        mask = np.ones_like(ids)
        mask[0, column] = 0
        keep = mask[0].astype(bool)
        padded, alone = last(ids, mask, FIRST), last(ids[:, keep], mask[:, keep], FIRST - 1)
        return bool(np.allclose(padded, alone, rtol=1e-3, atol=1e-4 * float(np.abs(alone).max())))

    if not exact(0):
        return "nowhere"
    return "anywhere" if exact(FIRST - 1) else "left"
