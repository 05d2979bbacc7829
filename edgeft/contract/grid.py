"""The grid of integer weights: the one quantizer that training, export and verification share.

Block-wise along the input features, as onnxruntime's MatMulNBits and GatherBlockQuantized compute it: a weight is
(code - zero point) * scale, scale and zero point of its row's block. How they are chosen is in rounding.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rounding import ROUNDINGS
from .slots import Array

BITS = {"int4": 4, "int8": 8}
CHUNK = 1 << 22  # values worked on at once, so that a large head does not triple in memory


@dataclass(frozen=True)
class Grid:
    """A quantized weight [out, in]: codes [out, blocks, block * bits / 8] uint8, scales [out, blocks] float32.

    `zeros` [out, blocks * bits / 8, rounded up] are packed like codes; None: every zero point is the middle code.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: int
    block: int
    in_features: int
    zeros: NDArray[np.uint8] | None = None

    @property
    def zero_points(self) -> NDArray[np.uint8]:
        """One zero point for each block, [out, blocks]."""
        if self.zeros is None:
            return np.full(self.scales.shape, 1 << (self.bits - 1), np.uint8)
        return unpack(self.zeros, self.bits)[:, : self.scales.shape[1]]

    def dequantize(self) -> Array:
        """The weight that the device computes with, float32 [out, in]."""
        codes = unpack(self.codes, self.bits).astype(np.float32) - self.zero_points.astype(np.float32)[:, :, None]
        values = codes * self.scales[:, :, None]
        return values.reshape(len(values), -1)[:, : self.in_features]

    def rows(self, start: int, stop: int) -> Grid:
        """A part of it."""
        return Grid(self.codes[start:stop], self.scales[start:stop], self.bits, self.block, self.in_features,
                    None if self.zeros is None else self.zeros[start:stop])


@dataclass(frozen=True)
class Quant:
    """How weights are stored: kind is fp32, fp16, int8 or int4; the rest says which grid of integers."""

    kind: str
    block: int = 0
    symmetric: bool = True
    rounding: str = "rtn"

    @property
    def bits(self) -> int:
        """Bits per weight on an integer grid; 0 for floats."""
        return BITS.get(self.kind, 0)

    def __str__(self) -> str:
        if not self.bits:
            return self.kind
        shape = "symmetric" if self.symmetric else "asymmetric"
        return f"{self.kind}, block {self.block}, {shape}, rounding {self.rounding}"

    def but(self, **changes: Any) -> Quant:
        """The same with some fields of another value; None leaves one as it is."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def quantize(self, weight: Array) -> Grid:
        """A weight [out, in] on this grid."""
        return quantize(weight, self.bits, self.block, self.symmetric, self.rounding)

    def to_json(self) -> dict[str, Any]:
        """As recorded in bundle.json."""
        if not self.bits:
            return {"kind": self.kind}
        return {"kind": self.kind, "block": self.block, "symmetric": self.symmetric, "rounding": self.rounding,
                "accuracy_level": 4}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Quant:
        """From bundle.json, or from the grid of edgeft.json; what older ones lack is the default."""
        kind = str(stored.get("kind") or stored["quant"])
        return Quant(kind, int(stored.get("block", 0)), bool(stored.get("symmetric", True)),
                     str(stored.get("rounding", "rtn")))


def quantize(weight: Array, bits: int, block: int, symmetric: bool = True, rounding: str = "rtn") -> Grid:
    """Round a weight [out, in] to the grid; the last block is padded with zeros where `block` does not divide."""
    rows, in_features = weight.shape
    blocks = -(-in_features // block)
    codes = np.empty((rows, blocks, block * bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    zeros = None if symmetric else np.empty((rows, -(-blocks * bits // 8)), np.uint8)
    step = max(1, CHUNK // (blocks * block))
    for start in range(0, rows, step):
        part = np.zeros((min(step, rows - start), blocks * block), np.float32)
        part[:, :in_features] = weight[start : start + step]
        found, scale, zero = ROUNDINGS[rounding](part.reshape(len(part), blocks, block), bits, symmetric)
        codes[start : start + step], scales[start : start + step] = pack(found, bits), scale
        if zeros is not None and zero is not None:
            odd = blocks % 2 if bits == 4 else 0  # half a byte that no block reads: onnxruntime leaves the middle there
            zeros[start : start + step] = pack(np.pad(zero, ((0, 0), (0, odd)), constant_values=8), bits)
    codes.reshape(rows, -1)[:, -(-in_features * bits // 8) :] = 0  # the padding, as ONNX Runtime leaves it
    return Grid(codes, scales, bits, block, in_features, zeros)


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Two 4-bit codes in one byte, the first in its lower half; 8-bit codes as they are."""
    return codes if bits == 8 else (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8)


def unpack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The reverse of `pack`."""
    if bits == 8:
        return codes
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)


def digest(grids: Iterable[Grid]) -> str:
    """Of one tensor's codes, scales and zero points, its rows in order over the parts given."""
    codes, scales, zeros = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    shape = [0, 0]
    for grid in grids:
        codes.update(np.ascontiguousarray(grid.codes).data)
        scales.update(np.ascontiguousarray(grid.scales).data)
        if grid.zeros is not None:
            zeros.update(np.ascontiguousarray(grid.zeros).data)
        shape = [shape[0] + len(grid.codes), grid.in_features, grid.bits, grid.block, grid.zeros is None]
    parts = [json.dumps(shape), codes.hexdigest(), scales.hexdigest(), zeros.hexdigest()]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def fingerprint(digests: Mapping[str, str]) -> str:
    """Of a whole grid: tensor names with their digests."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()
