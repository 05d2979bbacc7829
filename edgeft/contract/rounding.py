"""How the weights of a block become codes, a scale and a zero point; none of these needs calibration data.

Each takes values [rows, blocks, block] and gives codes of that shape, scales [rows, blocks] and zero points [rows,
blocks], or None where the zero point is the middle: a weight is then (code - zero point) * scale. Sums run in numpy's
own fixed order, so that a training host and an exporting one find the same codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Codes: TypeAlias = NDArray[np.uint8]
Rounded: TypeAlias = tuple[Codes, Floats, Codes | None]
Rounding: TypeAlias = Callable[[Floats, int, bool], Rounded]

SHARES = np.arange(11, 23, dtype=np.float32) / np.float32(20)  # of the range that codes span, 0.55 to 1.1


def nearest(values: Floats, bits: int, symmetric: bool) -> Rounded:
    """ONNX Runtime's own rounding to nearest, bit for bit: the scale spans the block's extremes."""
    scale, zero = _span(values, bits, symmetric)
    return _codes(values, scale, zero, bits), scale, None if symmetric else zero.astype(np.uint8)


def least_squares(values: Floats, bits: int, symmetric: bool) -> Rounded:
    """The scale, of a search over the range that codes span, with the least squared error in each block.

    For each range the scale is refitted to the codes that it gave: sum(x d) / sum(d d), where d = code - zero point.
    """
    span, zero = _span(values, bits, symmetric)
    best = np.full(span.shape, -1, np.float32)
    codes, scale, point = np.zeros(values.shape, np.uint8), np.zeros_like(span), zero
    for share in SHARES:
        for start in (span * share, -span * share) if symmetric else (span * share,):
            middle = zero if symmetric else _zero_point(values.min(axis=2) * share, start, bits)
            tried = _codes(values, start, middle, bits)
            steps = tried.astype(np.float32) - middle[:, :, None]
            squares = np.maximum((steps * steps).sum(axis=2), np.float32(1e-30))
            fit = (values * steps).sum(axis=2) / squares
            gain = fit * fit * squares  # by how much the squared error is less than that of zeros
            better = gain > best
            codes[better], scale[better], best[better] = tried[better], fit[better], gain[better]
            point = np.where(better, middle, point)
    return codes, scale, None if symmetric else point.astype(np.uint8)


ROUNDINGS: dict[str, Rounding] = {"rtn": nearest, "mse": least_squares}


def _span(values: Floats, bits: int, symmetric: bool) -> tuple[Floats, Floats]:
    """The scale at which the codes span all values, and the zero point."""
    middle = np.float32(1 << (bits - 1))
    high, low = values.max(axis=2), values.min(axis=2)
    if symmetric:
        extreme = np.where(np.abs(low) >= np.abs(high), low, high)
        return (extreme / -middle).astype(np.float32), np.full(high.shape, middle, np.float32)
    high, low = np.maximum(high, np.float32(0)), np.minimum(low, np.float32(0))
    scale = ((high - low) / (2 * middle - 1)).astype(np.float32)
    return scale, _zero_point(low, scale, bits)


def _zero_point(low: Floats, scale: Floats, bits: int) -> Floats:
    """The code of zero where the lowest value has code 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scale != 0, -np.minimum(low, np.float32(0)) / scale, np.float32(0)).astype(np.float32)
    zero: Floats = np.clip(np.floor(steps + np.float32(0.5)), 0, (1 << bits) - 1).astype(np.float32)
    return zero


def _codes(values: Floats, scale: Floats, zero: Floats, bits: int) -> Codes:
    with np.errstate(divide="ignore"):
        inverse = np.where(scale != 0, np.float32(1) / scale, np.float32(0)).astype(np.float32)
    codes = values * inverse[:, :, None]
    codes += zero[:, :, None]
    codes += np.float32(0.5)  # below the clip at 0, so rounding half away from zero is rounding half up
    np.floor(codes, out=codes)
    np.clip(codes, 0, (1 << bits) - 1, out=codes)
    return codes.astype(np.uint8)
