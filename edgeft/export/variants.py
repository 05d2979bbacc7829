"""Further graphs of a bundle over the same weights, each the fastest at one kind of step, made from model.onnx.

model.onnx is the contract's graph: it serves any batch, and pays for its slots at every token. The runner takes
plain (no slots), prefill (any number of tokens) or decode (one token a row), docs/decisions.md, 26. In the last two a
row brings its own matrices, scale folded in: `{group}.A [rows, blocks, in, R]`, `{group}.B [rows, blocks, R, width]`,
without the blocks where there is one. Blocks are equally wide runs of a packed product's columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from edgeft.contract.bundle import DECODE_GRAPH, GRAPH, PLAIN_GRAPH, PREFILL_GRAPH, SCALED_GRAPH, SLOTS_GRAPH, SlotGroup

from .nodes import Builder, take_over


@dataclass(frozen=True)
class Site:
    """One slot in the contract's graph: `result = base + ((read A) * gate) B`."""

    result: ir.Value
    base: ir.Value
    read: ir.Value
    a: ir.Value
    b: ir.Value


Form = Callable[[Site, SlotGroup, "Nodes"], ir.Value]


class Nodes(Builder):
    """New nodes, and the inputs of slots in the shape that blocks read."""

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__(graph)
        self._widened: dict[ir.Value, ir.Value] = {}

    def over_blocks(self, read: ir.Value) -> ir.Value:
        """[rows, seq, in] to [rows, 1, seq, in], once for all slots that read it."""
        if read not in self._widened:
            self._widened[read] = self.add("Unsqueeze", read, self.ints(1))
        return self._widened[read]


def write_variants(folder: Path, slots: Sequence[SlotGroup]) -> None:
    """Write the plain graph, and with slots the prefill and decode graphs, beside model.onnx."""
    forms: dict[str, Form] = {PLAIN_GRAPH: _plain}
    if slots:
        forms |= {PREFILL_GRAPH: _prefill, DECODE_GRAPH: _decode}
    for file, form in forms.items():
        model = ir.load(folder / GRAPH)
        rewrite(model, {slot.name: slot for slot in slots}, form)
        ir.save(model, folder / file)


def write_required(folder: Path, slots: Sequence[SlotGroup]) -> None:
    """Beside a graph with slots in standard operators: it without them, and with them as inputs to be given always.

    OpenVINO's provider takes an input that has a default for a constant, and says nothing when another value is given:
    an adapter would load and change nothing.
    """
    if not slots:
        return
    for file in (PLAIN_GRAPH, SLOTS_GRAPH, SCALED_GRAPH):
        made = file != SCALED_GRAPH
        if not (made or (folder / file).is_file()):
            continue
        model = ir.load(folder / (GRAPH if made else file))
        if file == PLAIN_GRAPH:
            rewrite(model, {slot.name: slot for slot in slots}, _plain)
        for value in model.graph.inputs:
            if value.is_initializer():
                _required(model.graph, value, value.shape)
        ir.save(model, folder / file)


def rewrite(model: ir.Model, slots: dict[str, SlotGroup], form: Form) -> None:
    """Give every slot of the contract's graph another form, in place."""
    graph = model.graph
    shared = Nodes(graph)
    for site in list(_sites(graph)):
        shared.made = []
        value = form(site, slots[str(site.a.name).removesuffix(".A")], shared)
        node = site.result.producer()
        assert node is not None
        graph.insert_before(node, shared.made)
        take_over(site.result, value)
        graph.remove(node, safe=True)
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
    for value in list(graph.inputs):
        if not value.uses() and value.is_initializer():
            graph.inputs.remove(value)
            del graph.initializers[str(value.name)]


def _sites(graph: ir.Graph) -> Iterator[Site]:
    for node in graph:
        product = node.inputs[1].producer() if node.op_type == "Add" and node.inputs[1] is not None else None
        if product is None or product.op_type != "MatMul":
            continue
        gated, b = product.inputs
        if b is None or b not in graph.inputs or not str(b.name).endswith(".B"):
            continue
        narrow = gated.producer().inputs[0].producer()  # type: ignore[union-attr]
        read, a = narrow.inputs  # type: ignore[union-attr]
        yield Site(node.outputs[0], node.inputs[0], read, a, b)  # type: ignore[arg-type]


def _plain(site: Site, slot: SlotGroup, nodes: Nodes) -> ir.Value:
    return site.base


def _prefill(site: Site, slot: SlotGroup, nodes: Nodes) -> ir.Value:
    """Any number of tokens: the blocks come out one behind the other and are laid side by side."""
    low = _low(site, slot, nodes)
    if slot.blocks > 1:
        low = nodes.add("Transpose", low, perm=[0, 2, 1, 3])
        low = nodes.add("Reshape", low, nodes.ints(0, 0, sum(slot.out_features)))
    return nodes.add("Add", site.base, low)


def _decode(site: Site, slot: SlotGroup, nodes: Nodes) -> ir.Value:
    """One token a row: the blocks lie side by side already."""
    low = _low(site, slot, nodes)
    if slot.blocks > 1:
        low = nodes.add("Reshape", low, nodes.ints(-1, 1, sum(slot.out_features)))
    return nodes.add("Add", site.base, low)


def _low(site: Site, slot: SlotGroup, nodes: Nodes) -> ir.Value:
    """(read A) B, a row's own matrices each: [rows, blocks, seq, width], or [rows, seq, out] for one block."""
    rank = f"{slot.name}.rank"
    blocks: list[int | str] = [slot.blocks] if slot.blocks > 1 else []
    _required(nodes.graph, site.a, ["rows", *blocks, slot.in_features, rank])
    _required(nodes.graph, site.b, ["rows", *blocks, rank, slot.width])
    read = nodes.over_blocks(site.read) if slot.blocks > 1 else site.read
    return nodes.add("MatMul", nodes.add("MatMul", read, site.a), site.b)


def _required(graph: ir.Graph, value: ir.Value, shape: Iterable[Any] | None) -> None:
    """An input that the runner always gives, so that the weights of all these graphs are the same."""
    graph.initializers.pop(str(value.name), None)
    value.const_value, value.shape = None, ir.Shape(shape or ())
