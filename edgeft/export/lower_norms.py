"""Root mean square and layer normalizations, also with the residual before them, in standard operators."""

from __future__ import annotations

import onnx_ir as ir

from .nodes import Builder, given

SKIPS = {"SkipSimplifiedLayerNormalization": False, "SkipLayerNormalization": True}  # whether the mean is taken off


def lower_norms(graph: ir.Graph) -> None:
    """Write out every normalization that opset 21 does not have."""
    for node in list(graph):
        nodes = Builder(graph)
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        if node.op_type in SKIPS:
            _lower_skip(nodes, node, epsilon)
        elif node.op_type == "SimplifiedLayerNormalization" or (
                node.op_type == "RMSNormalization" and node.attributes.get_int("axis", -1) == -1):
            nodes.replace(node, [_rms(nodes, given(node.inputs[0]), given(node.inputs[1]), epsilon)])


def _lower_skip(nodes: Builder, node: ir.Node, epsilon: float) -> None:
    layer = SKIPS[node.op_type]
    read, skip, weight, *rest = (*node.inputs, None, None)
    beta, bias = rest[:2] if layer else (None, rest[0])
    total = nodes.add("Add", given(read), given(skip))
    if bias is not None:
        total = nodes.add("Add", total, bias)
    if layer:
        result = nodes.add("LayerNormalization", total, weight, *([beta] if beta else []), axis=-1, epsilon=epsilon)
    else:
        result = _rms(nodes, total, given(weight), epsilon)
    if len(node.outputs) > 3:  # the residual for the next one
        ir.convenience.replace_all_uses_with(node.outputs[3], total)
    nodes.replace(node, [result])


def _rms(nodes: Builder, read: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
    """x / sqrt(mean(x^2) + epsilon) * weight, in the form that providers know and fuse again."""
    square = nodes.add("Pow", read, nodes.scalar(2.0))
    mean = nodes.add("ReduceMean", square, nodes.ints(-1), keepdims=1)
    root = nodes.add("Sqrt", nodes.add("Add", mean, nodes.scalar(epsilon)))
    return nodes.add("Mul", nodes.add("Div", read, root), weight)
