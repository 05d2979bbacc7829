"""The grid of integer weights: the one quantizer that training, export and verification share.

ONNX Runtime's block-wise symmetric rounding to nearest, bit for bit (`quantize_matmul_4bits`): per row and block
of input features, scale = (the value of largest magnitude) / -2^(bits-1), code = round_half_away(x / scale) + zero
point, with the zero point in the middle. It runs as MatMulNBits and GatherBlockQuantized.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .slots import Array

BITS = {"int4": 4, "int8": 8}
CHUNK = 1 << 22  # values worked on at once, so that a large head does not triple in memory


@dataclass(frozen=True)
class Grid:
    """A quantized weight [out, in]: codes [out, blocks, block * bits / 8] uint8, scales [out, blocks] float32."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: int
    block: int
    in_features: int

    def dequantize(self) -> Array:
        """The weight that the device computes with, float32 [out, in]."""
        codes = unpack(self.codes, self.bits).astype(np.float32) - np.float32(1 << (self.bits - 1))
        values = codes * self.scales[:, :, None]
        return values.reshape(len(values), -1)[:, : self.in_features]


def quantize(weight: Array, bits: int, block: int) -> Grid:
    """Round a weight [out, in] to the grid; the last block is padded with zeros where `block` does not divide."""
    rows, in_features = weight.shape
    blocks = -(-in_features // block)
    codes = np.empty((rows, blocks, block * bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    step = max(1, CHUNK // (blocks * block))
    for start in range(0, rows, step):
        part = np.zeros((min(step, rows - start), blocks * block), np.float32)
        part[:, :in_features] = weight[start : start + step]
        packed, scale = _quantize(part.reshape(len(part), blocks, block), bits)
        codes[start : start + step], scales[start : start + step] = packed, scale
    codes.reshape(rows, -1)[:, -(-in_features * bits // 8) :] = 0  # the padding, as ONNX Runtime leaves it
    return Grid(codes, scales, bits, block, in_features)


def _quantize(values: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    middle = np.float32(1 << (bits - 1))
    high, low = values.max(axis=2), values.min(axis=2)
    extreme = np.where(np.abs(low) >= np.abs(high), low, high)
    scale = (extreme / -middle).astype(np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale != 0, np.float32(1) / scale, np.float32(0)).astype(np.float32)
    codes = values * inverse[:, :, None]
    codes += middle + np.float32(0.5)  # below the clip at 0, so rounding half away from zero is rounding half up
    np.floor(codes, out=codes)
    np.clip(codes, 0, 2 * middle - 1, out=codes)
    return pack(codes.astype(np.uint8), bits), scale


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Two 4-bit codes in one byte, the first in its lower half; 8-bit codes as they are."""
    return codes if bits == 8 else (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8)


def unpack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The reverse of `pack`."""
    if bits == 8:
        return codes
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)
