"""New nodes of a rewrite, and the constants that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


def constant(graph: ir.Graph, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    """An array as an initializer of the graph, the one of this name if it is there."""
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        graph.register_initializer(ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype),
                                            const_value=tensor))
    return graph.initializers[name]


def integers(graph: ir.Graph, name: str, *values: int) -> ir.Value:
    """A list of integers as an initializer of the graph, the one of this name if it is there."""
    return constant(graph, name, np.asarray(values, np.int64))


def given(value: ir.Value | None) -> ir.Value:
    """An input that a node of its kind always has."""
    assert value is not None
    return value


def fixed_size(value: ir.Value | None, axis: int) -> int:
    """A size that is a number whatever the batch."""
    shape = given(value).shape
    assert shape is not None
    return int(str(shape[axis]))


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Give a value all that another one had: name, shape, type, uses, and its place among the graph's outputs."""
    name = str(old.name)
    old.name, new.name = f"{name}.replaced", name
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


class Builder:
    """Collects nodes in the order in which they are to stand."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph, self.made = graph, list[ir.Node]()

    def add(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """A node of one output; returns that."""
        self.made.append(ir.node(op, inputs, attributes))
        return self.made[-1].outputs[0]

    def split(self, value: ir.Value, sizes: Sequence[int]) -> Sequence[ir.Value]:
        """Parts of a value along its last axis."""
        if len(sizes) == 1:
            return [value]
        self.made.append(ir.node("Split", [value, self.ints(*sizes)], {"axis": -1}, num_outputs=len(sizes)))
        return self.made[-1].outputs

    def ints(self, *values: int) -> ir.Value:
        """A constant list of integers."""
        return integers(self.graph, "const.ints." + "_".join(map(str, values)), *values)

    def scalar(self, value: float, kind: Any = np.float32) -> ir.Value:
        """A constant number."""
        return constant(self.graph, f"const.{np.dtype(kind).name}.{value!r}", np.asarray(value, kind))

    def cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        """Another type of number."""
        return self.add("Cast", value, to=int(to))

    def replace(self, node: ir.Node, values: Sequence[ir.Value]) -> None:
        """Put the nodes made so far where `node` stands, and these values in place of its first outputs."""
        for old, new in zip(node.outputs, values, strict=False):
            take_over(old, new)
        self.graph.insert_before(node, self.made)
        self.graph.remove(node, safe=True)
        self.made = []
