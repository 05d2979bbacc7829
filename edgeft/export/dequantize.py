"""Integer weights in standard operators: DequantizeLinear in blocks, and an embedding that is unpacked row by row.

The codes are those of contract/grid.py, bit for bit; on a symmetric grid they are stored as signed numbers, so that no
zero point is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeft.contract.grid import Grid, Quant, pack, unpack

from .nodes import Builder
from .store import Store

GridOf = Callable[[], Grid]
SIGNED = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
UNSIGNED = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8}


def add_product(nodes: Builder, store: Store, quant: Quant, name: str, grid: GridOf, read: ir.Value, out: int,
                size: int) -> ir.Value:
    """read [..., size] times a weight [size, out] that is stored as integers, blocks along its rows."""
    blocks = -(-size // quant.block)
    kind = (SIGNED if quant.symmetric else UNSIGNED)[quant.bits]
    values = [store.add(f"{name}.codes", kind, (size, out), lambda: codes_by_input(grid(), quant.symmetric)),
              store.add(f"{name}.scales", ir.DataType.FLOAT, (blocks, out), lambda: grid().scales.T)]
    if not quant.symmetric:
        values.append(store.add(f"{name}.zeros", kind, (blocks, out),
                                lambda: _packed(grid().zero_points.T, quant.bits)))
    return nodes.add("MatMul", read, nodes.add("DequantizeLinear", *values, axis=0, block_size=quant.block))


def codes_by_input(grid: Grid, signed: bool) -> NDArray[np.uint8]:
    """Codes [in, out] as ONNX stores them; signed ones have the middle code taken off."""
    codes = unpack(grid.codes, grid.bits).reshape(len(grid.codes), -1)[:, : grid.in_features].T
    if signed:
        codes = (codes - np.uint8(1 << (grid.bits - 1))) & np.uint8((1 << grid.bits) - 1)
    return _packed(codes, grid.bits)


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Two 4-bit codes a byte over the whole array, as ONNX wants them, whatever its last axis."""
    flat = codes.reshape(-1)
    return pack(np.pad(flat, (0, flat.size % 2)), bits) if bits == 4 else flat


def add_lookup(nodes: Builder, store: Store, quant: Quant, name: str, grid: GridOf,
               points: Callable[[], NDArray[np.uint8]], ids: ir.Value, rows: int, size: int) -> ir.Value:
    """Rows `ids` of a table [rows, size] that is stored as integers: [batch, seq, size].

    Only the rows looked up are unpacked: a DequantizeLinear before the Gather would do all of them at every token.
    """
    blocks = -(-size // quant.block)
    codes = store.add(f"{name}.table", ir.DataType.UINT8, (rows, blocks * quant.block * quant.bits // 8),
                      lambda: grid().codes.reshape(rows, -1), key=f"{name}.codes")
    scales = store.add(f"{name}.table_scales", ir.DataType.FLOAT, (rows, blocks, 1),
                       lambda: grid().scales[:, :, None], key=f"{name}.scales")
    found = nodes.cast(nodes.add("Gather", codes, ids, axis=0), ir.DataType.FLOAT)
    if quant.bits == 4:  # the second of a pair lies in the upper half of its byte
        high = nodes.add("Floor", nodes.add("Mul", found, nodes.scalar(1 / 16)))
        low = nodes.add("Sub", found, nodes.add("Mul", high, nodes.scalar(16.0)))
        found = nodes.add("Concat", *(nodes.add("Unsqueeze", half, nodes.ints(-1)) for half in (low, high)), axis=-1)
    found = nodes.add("Reshape", found, nodes.ints(0, 0, blocks, quant.block))
    if quant.symmetric:
        middle = nodes.scalar(float(1 << (quant.bits - 1)))
    else:
        zeros = store.add(f"{name}.table_zeros", ir.DataType.UINT8, (rows, blocks, 1), lambda: points()[:, :, None])
        middle = nodes.cast(nodes.add("Gather", zeros, ids, axis=0), ir.DataType.FLOAT)
    found = nodes.add("Mul", nodes.add("Sub", found, middle), nodes.add("Gather", scales, ids, axis=0))
    found = nodes.add("Reshape", found, nodes.ints(0, 0, blocks * quant.block))
    if blocks * quant.block != size:
        found = nodes.add("Slice", found, nodes.ints(0), nodes.ints(size), nodes.ints(2))
    return found
