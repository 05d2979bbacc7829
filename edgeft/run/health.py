"""Whether a prepared graph computes what the exported one does: the same outputs for the same few tokens and slots."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeft.contract.bundle import DECODE_GRAPH, Bundle
from edgeft.contract.errors import EdgeftError

from .prepared import PROVIDER

TOLERANCE = 1e-5  # of the largest value: the same kernels on the same numbers, so no more than a sum's order
TOKENS, CAPACITY, RANK = 4, 8, 2
TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32,
         "tensor(float16)": np.float16, "tensor(bool)": np.bool_}
Array = np.ndarray[Any, Any]


def check_equal(bundle: Bundle, name: str, prepared: Path) -> None:
    """Run the exported and the prepared graph, slots at rest and slots in use; EdgeftError where they differ."""
    shared = bundle.manifest["graph"]["cache"] == "shared"
    expected = outputs(bundle.folder / name, shared=shared)
    found = outputs(prepared, shared=shared, prepared=True)
    for way, arrays in expected.items():
        for output, array in arrays.items():
            other = found.get(way, {}).get(output)
            worst = difference(array, other)
            if not worst <= TOLERANCE:
                raise EdgeftError(f"{prepared}: the prepared graph answers otherwise than {name} does: {output}, slots "
                                  f"{way}, is off by {worst:.2g} of its largest value; at most {TOLERANCE} may be. "
                                  "The bundle runs as it is; please report this machine and onnxruntime's version.")


def difference(left: Array, right: Array | None) -> float:
    """Largest difference relative to the largest value, at least 1; NaN and a missing output are infinitely far."""
    if right is None or left.shape != right.shape or not (np.isfinite(left).all() and np.isfinite(right).all()):
        return float("inf")
    if not left.size:
        return 0.0
    return float(np.abs(left - right).max() / max(1.0, float(np.abs(left).max())))


def outputs(graph: Path, *, shared: bool, prepared: bool = False) -> dict[str, dict[str, Array]]:
    """What a graph computes: {"at rest": outputs, "in use": outputs}, the second if slots may be left out."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    if prepared:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(graph), settings, providers=[PROVIDER])
        tokens = 1 if graph.name == DECODE_GRAPH else TOKENS
        feeds = {item.name: _fill(item, tokens, shared) for item in session.get_inputs()}
        slots = {item.name: _fill(item, tokens, shared) for item in session.get_overridable_initializers()
                 if item.type == "tensor(float)"}
        names = [item.name for item in session.get_outputs()]
        made = {"at rest": dict(zip(names, session.run(None, feeds), strict=True))}
        if slots:
            made["in use"] = dict(zip(names, session.run(None, {**feeds, **slots}), strict=True))
    except Exception as error:  # onnxruntime raises its own kinds, none of them documented
        raise EdgeftError(f"{graph}: cannot be run on a few tokens ({str(error).splitlines()[0]}).") from None
    return made


def _fill(item: Any, tokens: int, shared: bool) -> Array:
    """A value for an input, the same one every time: tokens, an empty cache, or small numbers in a slot."""
    if item.name.startswith("past_key_values"):
        _, heads, _, size = item.shape
        return np.zeros((1, heads, CAPACITY if shared else 0, size), TYPES[item.type])
    if item.name == "input_ids":
        return np.arange(1, tokens + 1, dtype=TYPES[item.type])[None]
    if item.name == "attention_mask":
        return np.ones((1, tokens), TYPES[item.type])
    if item.type != "tensor(float)":
        return np.zeros([tokens if index else 1 for index in range(len(item.shape))], TYPES[item.type])
    noise = np.random.default_rng(zlib.crc32(item.name.encode())).standard_normal([_size(dim) for dim in item.shape])
    factor = item.name.endswith((".scale", "gate"))
    return np.asarray(1 + 0.1 * noise if factor else 0.1 * noise, np.float32)


def _size(dim: int | str | None) -> int:
    """A dimension's size: rank_x3 is three ranks wide, and what is no rank stands for one row or for all columns."""
    if isinstance(dim, int):
        return dim
    packed = re.fullmatch(r"rank_x(\d+)", dim or "")
    if packed:
        return RANK * int(packed[1])
    return RANK if (dim or "").endswith("rank") else 1
