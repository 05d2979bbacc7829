"""Adapters' matrices as the graphs take them: side by side behind a gate, or a row's own."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeft.contract.bundle import SlotGroup

if TYPE_CHECKING:
    from .adapters import Adapter

Array = np.ndarray[Any, Any]
Mix = Sequence[tuple["Adapter", float]]  # adapters of one row with their scales


def gate(adapters: Sequence[Adapter], rows: Sequence[Mapping[str, float]]) -> Array:
    """[rows, 1, R]: each row's scale on the columns of its own adapters, 0 on the others."""
    return np.asarray([[np.concatenate([np.full(adapter.rank, row.get(adapter.name, 0.0), np.float32)
                                        for adapter in adapters])] for row in rows], np.float32)


def side_by_side(groups: Sequence[SlotGroup], adapters: Sequence[Adapter], total: int = 0) -> dict[str, Array]:
    """`{group}.A [in, k * R]` and `{group}.B [k * R, out]` with the adapters' columns side by side.

    A module that an adapter leaves alone keeps zeros there, and so do a rank below the adapter's largest, and what a
    fixed R (`total`) has beyond the adapters' own.
    """
    total = total or sum(adapter.rank for adapter in adapters)
    packed = {}
    for group in groups:
        count = len(group.modules)
        a = np.zeros((group.in_features, count * total), np.float32)
        b = np.zeros((count * total, sum(group.out_features)), np.float32)
        out = 0
        for index, (module, width) in enumerate(zip(group.modules, group.out_features, strict=True)):
            column = index * total
            for adapter in adapters:
                if f"{module}.A" in adapter.tensors:
                    rank = adapter.tensors.shape(f"{module}.A")[1]
                    a[:, column : column + rank] = adapter.tensors[f"{module}.A"]
                    b[column : column + rank, out : out + width] = adapter.tensors[f"{module}.B"]
                column += adapter.rank
            out += width
        packed[f"{group.name}.A"], packed[f"{group.name}.B"] = a, b
    return packed


def shapes(group: SlotGroup, rows: int, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of A and B where a row brings its own matrices; `rank` is of one block."""
    blocks = (group.blocks,) if group.blocks > 1 else ()
    return (rows, *blocks, group.in_features, rank), (rows, *blocks, rank, group.width)


def layout(groups: Sequence[SlotGroup], rows: int, ranks: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of all matrices by name; groups of rank 0 have none."""
    return {f"{group.name}.{part}": shape for group in groups if ranks[group.name]
            for part, shape in zip("AB", shapes(group, rows, ranks[group.name]), strict=True)}


def size(groups: Sequence[SlotGroup], rows: int, ranks: Mapping[str, int]) -> int:
    """Bytes of all of them."""
    return sum(4 * math.prod(shape) for shape in layout(groups, rows, ranks).values())


def nothing(groups: Sequence[SlotGroup]) -> dict[str, Array]:
    """Matrices of one rank of zeros, for any number of rows."""
    ones = {group.name: 1 for group in groups}
    return {name: np.zeros(shape, np.float32) for name, shape in layout(groups, 1, ones).items()}


def rank_of(group: SlotGroup, adapters: Sequence[Adapter]) -> int:
    """The rank of a block: of the module with most, or of all modules where they share one block."""
    ranks = [sum(adapter.rank_of(module) for adapter in adapters) for module in group.modules]
    return max(ranks) if group.blocks > 1 else sum(ranks)


def own_matrices(groups: Sequence[SlotGroup], mix: Mix) -> dict[str, Array]:
    """One row's `{group}.A` and `{group}.B`, scale folded into B; groups that no adapter touches are left out.

    All of them stand in one block of memory, which goes back to the system when the last of them is dropped.
    """
    adapters = [adapter for adapter, _ in mix]
    ranks = {group.name: rank_of(group, adapters) for group in groups}
    made = allocate(layout(groups, 1, ranks))
    for group in (group for group in groups if ranks[group.name]):
        _fill(group, mix, made[f"{group.name}.A"][0], made[f"{group.name}.B"][0])
    return made


def _fill(group: SlotGroup, mix: Mix, a: Array, b: Array) -> None:
    start, rank = 0, 0
    for module, width in zip(group.modules, group.out_features, strict=True):
        if group.blocks > 1:
            rank = 0  # each block counts its own
        for adapter, scale in mix:
            size = adapter.rank_of(module)
            if not size:
                continue
            narrow, wide = adapter.tensors[f"{module}.A"], adapter.tensors[f"{module}.B"]
            if group.blocks == 1:
                a[:, rank : rank + size] = narrow
                _scaled(wide, scale, b[rank : rank + size, start : start + width])
            else:
                for block in range(start // group.width, (start + width) // group.width):
                    a[block, :, rank : rank + size] = narrow
                    column = block * group.width - start
                    _scaled(wide[:, column : column + group.width], scale, b[block, rank : rank + size])
            rank += size
        start += width


def _scaled(matrix: Array, scale: float, out: Array) -> None:
    if scale == 1:
        out[...] = matrix
    else:
        np.multiply(matrix, np.float32(scale), out=out)


def allocate(wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Zeros of these shapes in one anonymous mapping: what malloc is given back it would keep."""
    offsets, total = {}, 0
    for name, shape in wanted.items():
        offsets[name] = total
        total += (4 * int(np.prod(shape)) + 63) // 64 * 64
    if not total:
        return {}
    memory = _anonymous(total)
    flat = np.frombuffer(memory, np.float32)
    return {name: flat[offsets[name] // 4 :][: int(np.prod(shape))].reshape(shape) for name, shape in wanted.items()}


def _anonymous(size: int) -> mmap.mmap:
    """Private memory, in huge pages where the system has them (docs/decisions.md, 33): shared memory never has."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= 4 << 20 and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class RowMatrices:
    """Room for the matrices of several rows, filled row by row as requests join."""

    def __init__(self, groups: Sequence[SlotGroup], rows: int, ranks: Mapping[str, int]) -> None:
        self.rows, self.ranks = rows, dict(ranks)
        self.arrays = allocate(layout(groups, rows, ranks))
        self.held: list[object] = [()] * rows  # what each row holds; () is nothing

    def fits(self, rows: int, ranks: Mapping[str, int]) -> bool:
        """Whether that many rows of these ranks can be placed."""
        return rows <= self.rows and all(ranks[name] <= self.ranks[name] for name in ranks)

    def place(self, row: int, key: object, matrices: Mapping[str, Array]) -> None:
        """Copy one row's matrices in, unless it holds just these."""
        if self.held[row] == key:
            return
        for name, room in self.arrays.items():
            mine, given = room[row], matrices.get(name)
            if given is None or name.endswith(".B"):
                mine[...] = 0  # a column of A may hold anything where B has zeros
            if given is not None and name.endswith(".A"):
                mine[..., : given.shape[-1]] = given[0]
            elif given is not None:
                mine[..., : given.shape[-2], :] = given[0]
        self.held[row] = key

    def values(self, rows: int) -> dict[str, Array]:
        """Of the first rows."""
        return {name: array[:rows] for name, array in self.arrays.items()}


def scales(groups: Sequence[SlotGroup], adapters: Sequence[Adapter],
           rows: Sequence[Mapping[str, float]]) -> dict[str, Array]:
    """`{group}.scale [rows, 1, out]`: the product of what a row's adapters multiply by, 1 where none does.

    An adapter at scale c multiplies by 1 + c (s - 1): at 1 by s itself, at 0 by nothing.
    """
    made = {}
    for group in groups:
        found = np.ones((len(rows), 1, sum(group.out_features)), np.float32)
        out = 0
        for module, width in zip(group.modules, group.out_features, strict=True):
            for adapter in adapters:
                if f"{module}.scale" in adapter.tensors:
                    s = adapter.tensors[f"{module}.scale"]
                    for index, row in enumerate(rows):
                        found[index, 0, out : out + width] *= 1 + row.get(adapter.name, 0.0) * (s - 1)
            out += width
        made[f"{group.name}.scale"] = found
    return made
