"""The scaled graph: the bundle's graph over the same weights, with a product behind each layer for `scale` slots.

A graph of its own, because a node costs 4 to 15 microseconds whatever it does: who loads no adapter with scales does
not pay for them (docs/decisions.md, 12).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeft.contract.bundle import SlotGroup

from .linears import Group


@dataclass(frozen=True)
class Product:
    """One packed product of the graph, slots included, and what its layers' results are."""

    group: Group
    packed: ir.Value
    outputs: list[ir.Value]  # one per linear, the packed value itself where there is one


def add_scales(model: ir.Model, products: Sequence[Product]) -> list[SlotGroup]:
    """Put `y * s` behind every layer, in place; a layer's own bias counts as part of y."""
    ends = [end for product in products for end in _ends(product)]
    for slot, value in ends:
        _scale(model.graph, slot, value)
    return list(dict.fromkeys(slot for slot, _ in ends))  # DeBERTa uses some layers twice


def _ends(product: Product) -> list[tuple[SlotGroup, ir.Value]]:
    """Where results are complete: behind each bias, or once for the whole product where none has one."""
    behind = [_with_bias(value) for value in product.outputs]
    if behind == product.outputs:
        return [(product.group.slot, product.packed)]
    return [(Group([linear]).slot, value) for linear, value in zip(product.group.linears, behind, strict=True)]


def _with_bias(value: ir.Value) -> ir.Value:
    """What a bias made of a layer's result; the result itself where no bias is added."""
    uses = list(value.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return value
    other = uses[0].node.inputs[1 - uses[0].idx]
    return uses[0].node.outputs[0] if other is not None and _is_constant_row(other) else value


def _is_constant_row(value: ir.Value) -> bool:
    """Whether a value is one row of stored numbers, or several of them side by side."""
    if value.is_initializer():
        return value.shape is not None and len(value.shape) == 1
    producer = value.producer()
    return producer is not None and producer.op_type == "Concat" and all(
        part is not None and _is_constant_row(part) for part in producer.inputs)


def _scale(graph: ir.Graph, slot: SlotGroup, value: ir.Value) -> None:
    scale = graph.initializers.get(f"{slot.name}.scale") or _input(graph, slot)
    node = ir.node("Mul", [scale, scale])
    scaled, before = node.outputs[0], value.producer()
    assert before is not None
    scaled.shape, scaled.type = value.shape, ir.TensorType(ir.DataType.FLOAT)
    scaled.name, value.name = value.name, f"{value.name}.unscaled"
    ir.convenience.replace_all_uses_with(value, scaled, replace_graph_outputs=True)
    node.replace_input_with(0, value)
    node.name = f"{slot.name}.scale_product"
    graph.insert_after(before, node)


def _input(graph: ir.Graph, slot: SlotGroup) -> ir.Value:
    scale = ir.Value(name=f"{slot.name}.scale", type=ir.TensorType(ir.DataType.FLOAT),
                     shape=ir.Shape(["rows", 1, f"{slot.name}.width"]))
    scale.const_value = ir.tensor(np.ones((1, 1, 1), np.float32), name=scale.name)
    graph.inputs.append(scale)
    graph.register_initializer(scale)
    return scale
