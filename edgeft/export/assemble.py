"""From a base graph to a bundle's: each linear packed, quantized and given its slot."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from edgeft.contract.bundle import SCALED_GRAPH, SlotGroup
from edgeft.contract.grid import Grid, Quant
from edgeft.contract.slots import Array

from .dequantize import add_lookup, add_product
from .graph import BaseGraph
from .linears import Group, Piece, find_groups
from .nodes import Builder, integers, take_over
from .same_grid import tensor_digests
from .scales import Product, add_scales
from .store import Store
from .weights import Source

MS = "com.microsoft"
GATE = "adapter_gate"
INT8, EXACT = 4, 1  # accuracy levels of MatMulNBits: activations rounded to int8, or as they are
T = TypeVar("T")


class Assembly:
    """One graph being rewritten; `kinds` are the slot kinds that it gets.

    `integers`: for a graph in standard operators, the one that integer weights are stored for.
    """

    def __init__(self, base: BaseGraph, source: Source, quant: Quant, kinds: Collection[str], *,
                 integers: str = "") -> None:
        self.base, self.source, self.quant, self.kinds, self.integers = base, source, quant, kinds, integers
        self.standard = bool(integers)
        self.graph = base.model.graph
        self.store = Store(base.model)
        self.groups = find_groups(base)
        self.scales: list[SlotGroup] = []
        self._products: list[Product] = []
        self._gates: dict[int, ir.Value] = {}
        self._slot_inputs: set[str] = set()
        self.digests: dict[str, str] = {}  # of each tensor's codes, scales and zero points as they were written
        self._grid_made: tuple[str, Grid] | None = None
        self._points: dict[str, NDArray[np.uint8]] = {}

    @property
    def slots(self) -> list[SlotGroup]:
        """Every linear layer; with "lowrank" each has a slot."""
        return [group.slot for group in self.groups]

    def write(self, folder: Path) -> None:
        """Rewrite the graph in place and write it with its data; with "scale" also the scaled graph, over that data."""
        self._run()
        self.store.write(folder)
        if "scale" in self.kinds:
            self.scales = add_scales(self.base.model, self._products)
            ir.save(self.base.model, folder / SCALED_GRAPH)

    def _run(self) -> None:
        tables = self._tables()
        gate = self._gate_input() if "lowrank" in self.kinds else None
        for group in self.groups:
            self._rewrite(group, gate, tied=group.pieces[0].weight in tables)
        for name, gathers in tables.items():
            self._rewrite_table(name, gathers)
        RemoveUnusedNodesPass()(self.base.model)
        TopologicalSortPass()(self.base.model)
        self._fill_rest()
        self._tidy()

    def _tables(self) -> dict[str, list[ir.Node]]:
        """Embedding tables by weight: what token ids are looked up in."""
        tables: dict[str, list[ir.Node]] = {}
        for node in self.graph:
            table = node.inputs[0] if node.op_type == "Gather" else None
            if table is not None and table.name in self.base.origins and _from_ids(node.inputs[1]):
                tables.setdefault(str(table.name), []).append(node)
        return tables

    def _rewrite(self, group: Group, gate: ir.Value | None, *, tied: bool) -> None:
        first = group.linears[0].node
        read = first.inputs[0]
        assert read is not None
        nodes: list[ir.Node] = []
        result = self._product(group, read, nodes, tied=tied)
        if gate is not None:
            result = self._slot(group.slot, read, result, gate, nodes)
        outputs = self._split(group, result, nodes)
        for linear, value in zip(group.linears, outputs, strict=True):
            take_over(linear.node.outputs[0], value)
            value.type = ir.TensorType(ir.DataType.FLOAT)
        self.graph.insert_before(first, nodes)
        self._products.append(Product(group, result, outputs))
        for linear in group.linears:
            self.graph.remove(linear.node, safe=True)

    def _product(self, group: Group, read: ir.Value, nodes: list[ir.Node], *, tied: bool) -> ir.Value:
        """The packed base product; `tied` reads the embedding's own tensor."""
        name, out, size = group.slot.name, sum(piece.out for piece in group.pieces), group.slot.in_features
        if self.quant.bits and self.integers == "DequantizeLinear":
            builder = Builder(self.graph)
            key = group.pieces[0].weight if tied else name
            result = add_product(builder, self.store, self.quant, name, lambda: self._grid(key, group.pieces), read,
                                 out, size)
            nodes += builder.made
            return result
        if self.quant.bits:
            values = self._grid_values(name, group.pieces, size, tied)
            self.base.model.opset_imports[MS] = 1
            return _node(nodes, "MatMulNBits", [read, *values], domain=MS, K=size, N=out, bits=self.quant.bits,
                         block_size=self.quant.block, accuracy_level=EXACT if self.standard else INT8)
        half = self.quant.kind == "fp16"
        if half:
            read = _node(nodes, "Cast", [read], to=int(ir.DataType.FLOAT16))
        if tied:  # the embedding's tensor again, read the other way round
            weight = self.graph.initializers[group.pieces[0].weight]
            if half or self.standard:
                turned = _node(nodes, "Transpose", [weight], perm=[1, 0])
                result = _node(nodes, "MatMul", [read, turned])
            else:
                result = _node(nodes, "FusedMatMul", [read, weight], domain=MS, transB=1)
        else:
            kind, dtype = (np.float16, ir.DataType.FLOAT16) if half else (np.float32, ir.DataType.FLOAT)
            weight = self.store.add(f"{name}.weight_t", dtype, (size, out),
                                    lambda: self._rows(group.pieces).T.astype(kind))
            result = _node(nodes, "MatMul", [read, weight])
        return _node(nodes, "Cast", [result], to=int(ir.DataType.FLOAT)) if half else result

    def _rows(self, pieces: Iterable[Piece]) -> Array:
        """The packed weight [out, in]."""
        parts = []
        for piece in pieces:
            array = self.base.origins[piece.weight].read(self.source)
            parts.append(array if piece.transposed else array.T)
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _grid_values(self, name: str, pieces: Sequence[Piece], size: int, tied: bool) -> list[ir.Value]:
        """Codes, scales and, on an asymmetric grid, zero points, as MatMulNBits takes them."""
        key = pieces[0].weight if tied else name
        blocks = -(-size // self.quant.block)
        out = sum(piece.out for piece in pieces)
        packed = self.quant.block * self.quant.bits // 8
        values = [self.store.add(f"{name}.codes", ir.DataType.UINT8, (out, blocks, packed),
                                 lambda: self._grid(key, pieces).codes, key=f"{key}.codes"),
                  self.store.add(f"{name}.scales", ir.DataType.FLOAT, (out, blocks),
                                 lambda: self._grid(key, pieces).scales, key=f"{key}.scales")]
        if not self.quant.symmetric:
            shape = (out, -(-blocks * self.quant.bits // 8))
            values.append(self.store.add(f"{name}.zeros", ir.DataType.UINT8, shape,
                                         lambda: _some(self._grid(key, pieces).zeros)))
        return values

    def _grid(self, key: str, pieces: Sequence[Piece]) -> Grid:
        """Quantize once for the codes, scales and zero points, which are written one after the other."""
        if self._grid_made is None or self._grid_made[0] != key:
            self._grid_made = None  # the last one's memory is free while this one is made
            grid = self.quant.quantize(self._rows(pieces))
            self._grid_made = (key, grid)
            self.digests |= tensor_digests(grid, pieces, self.base.origins)
            if key in self.base.origins:  # an embedding's: its lookup wants them unpacked, after the head's are written
                self._points[key] = grid.zero_points
        return self._grid_made[1]

    def _rewrite_table(self, name: str, gathers: Sequence[ir.Node]) -> None:
        """Store the embedding as the head is stored, and look tokens up in that."""
        if self.quant.kind == "fp32":
            return
        rows, size = self.base.origins[name].shape
        table = self.graph.initializers[name]
        if self.quant.kind == "fp16":
            table.type = ir.TensorType(ir.DataType.FLOAT16)
            for gather in gathers:
                self._after(gather, "Cast", to=int(ir.DataType.FLOAT))
            return
        block, bits = self.quant.block, self.quant.bits
        blocks = -(-size // block)
        piece = Piece(name, True, name.removesuffix(".weight"), rows)
        if self.standard:
            for gather in gathers:
                builder = Builder(self.graph)
                found = add_lookup(builder, self.store, self.quant, name, lambda: self._grid(name, [piece]),
                                   lambda: self._points[name], _some(gather.inputs[1]), rows, size)
                self._replace(gather, found, builder.made)
            return
        codes = self.store.add(f"{name}.table", ir.DataType.UINT8, (rows, blocks, block * bits // 8),
                               lambda: self._grid(name, [piece]).codes, key=f"{name}.codes")
        scales = self.store.add(f"{name}.table_scales", ir.DataType.FLOAT, (rows, blocks, 1),
                                lambda: self._grid(name, [piece]).scales, key=f"{name}.scales")
        values = [scales]
        if not self.quant.symmetric:  # one byte for each block here
            values.append(self.store.add(f"{name}.table_zeros", ir.DataType.UINT8, (rows, blocks, 1),
                                         lambda: self._points[name][:, :, None]))
        for gather in gathers:
            nodes: list[ir.Node] = []
            ids = gather.inputs[1]
            assert ids is not None
            found = _node(nodes, "GatherBlockQuantized", [codes, ids, *values], domain=MS, bits=bits,
                          block_size=block, gather_axis=0, quantize_axis=2)
            found = _node(nodes, "Reshape", [found, self._constant("row_shape", [0, 0, blocks * block])])
            if blocks * block != size:
                found = _node(nodes, "Slice", [found, self._constant("zero", [0]), self._constant("width", [size]),
                                               self._constant("last_axis", [2])])
            self._replace(gather, found, nodes)

    def _slot(self, slot: SlotGroup, read: ir.Value, result: ir.Value, gate: ir.Value,
              nodes: list[ir.Node]) -> ir.Value:
        """y + ((x A) * gate) B, zeros by default."""
        count, out = len(slot.modules), sum(slot.out_features)
        a = self._slot_input(f"{slot.name}.A", (slot.in_features, count), ("", f"rank_x{count}"))
        b = self._slot_input(f"{slot.name}.B", (count, out), (f"rank_x{count}", ""))
        narrow = _node(nodes, "MatMul", [read, a])
        gated = _node(nodes, "Mul", [narrow, self._gates.setdefault(count, gate) if count == 1
                                     else self._wide_gate(gate, count, nodes)])
        return _node(nodes, "Add", [result, _node(nodes, "MatMul", [gated, b])])

    def _wide_gate(self, gate: ir.Value, count: int, nodes: list[ir.Node]) -> ir.Value:
        """The gate once per packed module; made once for the whole graph."""
        if count not in self._gates:
            self._gates[count] = _node(nodes, "Concat", [gate] * count, axis=2)
        return self._gates[count]

    def _gate_input(self) -> ir.Value:
        return self._slot_input(GATE, (1, 1, 1), ("rows", "", "rank_x1"), fill=1.0)

    def _slot_input(self, name: str, shape: tuple[int, ...], names: tuple[str, ...], fill: float = 0.0) -> ir.Value:
        """An input that need not be given: one rank of zeros stands in for it."""
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT),
                         shape=ir.Shape([label or size for label, size in zip(names, shape, strict=True)]))
        value.const_value = ir.tensor(np.full(shape, fill, np.float32), name=name)
        self.graph.inputs.append(value)
        self.graph.register_initializer(value)
        self._slot_inputs.add(name)
        return value

    def _split(self, group: Group, result: ir.Value, nodes: list[ir.Node]) -> list[ir.Value]:
        if len(group.linears) == 1:
            return [result]
        sizes = self._constant(f"{group.slot.name}.sizes", [linear.out for linear in group.linears])
        node = ir.Node("", "Split", [result, sizes], attributes=[ir.AttrInt64("axis", -1)],
                       num_outputs=len(group.linears))
        nodes.append(node)
        return list(node.outputs)

    def _constant(self, name: str, values: list[int]) -> ir.Value:
        return integers(self.graph, f"const.{name}", *values)

    def _after(self, node: ir.Node, op: str, **attributes: Any) -> None:
        nodes: list[ir.Node] = []
        copy = ir.Node(node.domain, node.op_type, node.inputs, attributes=node.attributes.values())
        nodes.append(copy)
        self._replace(node, _node(nodes, op, [copy.outputs[0]], **attributes), nodes)

    def _replace(self, node: ir.Node, value: ir.Value, nodes: list[ir.Node]) -> None:
        old = node.outputs[0]
        value.shape, value.type = old.shape, ir.TensorType(ir.DataType.FLOAT)
        ir.convenience.replace_all_uses_with(old, value)
        self.graph.insert_before(node, nodes)
        self.graph.remove(node, safe=True)

    def _fill_rest(self) -> None:
        """Norms, biases and float tables: numbers for every initializer that has none yet."""
        for name, value in list(self.graph.initializers.items()):
            if name in self._slot_inputs:
                continue  # zeros, in the graph's own file
            if not value.uses():
                del self.graph.initializers[name]
            elif value.const_value is None:
                kind = np.float16 if value.dtype == ir.DataType.FLOAT16 else np.float32
                self.store.fill(value, partial(self._read, name, kind))
            elif value.const_value.nbytes > 1 << 16:  # rotary tables
                tensor = value.const_value
                self.store.fill(value, tensor.numpy)

    def _read(self, name: str, kind: type[np.generic]) -> np.ndarray[Any, Any]:
        return self.base.origins[name].read(self.source).astype(kind)

    def _tidy(self) -> None:
        """Drop what only building needed; names stay, for people who open the graph."""
        self.base.model.functions.clear()  # onnxruntime brings these operators itself
        for node in self.graph:
            node.metadata_props.clear()
        seen: set[str] = set()
        for index, node in enumerate(self.graph):
            if not node.name or node.name in seen:
                node.name = f"{node.op_type}_{index}"
            seen.add(node.name)


def _from_ids(value: ir.Value | None) -> bool:
    """Whether a value is the token ids, perhaps reshaped or cast on the way."""
    while value is not None and value.name != "input_ids":
        producer = value.producer()
        value = producer.inputs[0] if producer and producer.op_type in ("Reshape", "Cast", "Identity") else None
    return value is not None


def _some(value: T | None) -> T:
    assert value is not None
    return value


def _node(nodes: list[ir.Node], op: str, inputs: Sequence[ir.Value], *, domain: str = "",
          **attributes: Any) -> ir.Value:
    """Append a node of one output and return that."""
    made = ir.node(op, inputs, attributes, domain=domain)
    nodes.append(made)
    return made.outputs[0]
