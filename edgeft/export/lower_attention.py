"""GroupQueryAttention in standard operators: rotary positions, the cache as a concatenation, a finite mask.

The cache grows: a present is the past with the new rows behind it, and column j of the mask says whether row j of the
two together is real, as in traced graphs (trace.py). A token's position is the number of real tokens before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .nodes import Builder, fixed_size, given

MASKED = -1e4  # added to a masked score: its exponent is 0 in float32 and in float16, and it is no infinity
INT32, INT64, FLOAT = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT
KNOWN = {"num_heads", "kv_num_heads", "scale", "softcap", "do_rotary", "rotary_interleaved", "local_window_size",
         "smooth_softmax"}


@dataclass(frozen=True)
class Mask:
    """What every layer shares: positions of the new tokens and of all columns, and which of these a token may see."""

    positions: ir.Value  # [batch, seq] int32
    columns: ir.Value  # [batch, total] int32
    allowed: ir.Value  # [batch, 1, seq, total] float, 1 or 0


def lower_attention(graph: ir.Graph) -> None:
    """Write out every GroupQueryAttention; one with features that are not known here is left as it is."""
    found = [node for node in graph if node.op_type == "GroupQueryAttention" and _is_known(node)]
    if not found:
        return
    nodes = Builder(graph)
    mask = _mask(nodes)
    biases: dict[int, ir.Value] = {}
    rotations: dict[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]] = {}
    for node in found:
        window, tables = _window(node), _tables(node)
        if window not in biases:
            biases[window] = _bias(nodes, mask, window)
        if tables and tables not in rotations:
            rotations[tables] = _rotation(nodes, mask.positions, *tables)
    graph.insert_before(graph[0], nodes.made)
    for node in found:
        tables = _tables(node)
        _lower(node, biases[_window(node)], rotations[tables] if tables else None)


def _window(node: ir.Node) -> int:
    return node.attributes.get_int("local_window_size", -1)


def _tables(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Cosines and sines by position, where the node rotates."""
    return (given(node.inputs[7]), given(node.inputs[8])) if node.attributes.get_int("do_rotary", 0) else None


def _is_known(node: ir.Node) -> bool:
    plain = not node.attributes.get_int("rotary_interleaved", 0) and not node.attributes.get_int("smooth_softmax", 0)
    return plain and set(node.attributes) <= KNOWN and all(value is None for value in node.inputs[9:]) \
        and node.inputs[3] is not None and node.inputs[3].shape is not None


def _mask(nodes: Builder) -> Mask:
    graph = nodes.graph
    ids, given = graph.inputs[0], graph.inputs[1]
    seq, total = nodes.add("Shape", ids, start=1, end=2), nodes.add("Shape", given, start=1, end=2)
    past = nodes.add("Sub", total, seq)
    counted = nodes.cast(given, INT32)
    axis, end, one = nodes.ints(1), nodes.ints(np.iinfo(np.int32).max), nodes.scalar(1, np.int32)
    before = nodes.add("ReduceSum", nodes.add("Slice", counted, nodes.ints(0), past, axis), axis, keepdims=1)
    fresh = nodes.add("CumSum", nodes.add("Slice", counted, past, end, axis), nodes.scalar(1, np.int64))
    zero = nodes.scalar(0, np.int32)
    positions = nodes.add("Max", nodes.add("Sub", nodes.add("Add", before, fresh), one), zero)
    columns = nodes.add("Sub", nodes.add("CumSum", counted, nodes.scalar(1, np.int64)), one)
    everywhere = nodes.add("Range", nodes.scalar(0, np.int64), nodes.add("Squeeze", total), nodes.scalar(1, np.int64))
    here = nodes.add("Range", nodes.add("Squeeze", past), nodes.add("Squeeze", total), nodes.scalar(1, np.int64))
    causal = nodes.add("LessOrEqual", everywhere, nodes.add("Unsqueeze", here, nodes.ints(1)))
    real = nodes.add("Unsqueeze", nodes.cast(given, FLOAT), nodes.ints(1, 2))
    return Mask(positions, columns, nodes.add("Mul", real, nodes.cast(causal, FLOAT)))


def _bias(nodes: Builder, mask: Mask, window: int) -> ir.Value:
    """0 where a token may look, MASKED elsewhere; a window is measured in positions."""
    allowed = mask.allowed
    if window > 0:
        first = nodes.add("Sub", mask.positions, nodes.scalar(window, np.int32))
        near = nodes.add("Greater", nodes.add("Unsqueeze", mask.columns, nodes.ints(1, 2)),
                         nodes.add("Unsqueeze", first, nodes.ints(1, 3)))
        allowed = nodes.add("Mul", allowed, nodes.cast(near, FLOAT))
    return nodes.add("Mul", nodes.add("Sub", nodes.scalar(1.0), allowed), nodes.scalar(MASKED))


def _rotation(nodes: Builder, positions: ir.Value, cos: ir.Value, sin: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines of the new tokens, [batch, 1, seq, rotated / 2]."""
    found = [nodes.add("Unsqueeze", nodes.add("Gather", table, positions, axis=0), nodes.ints(1))
             for table in (cos, sin)]
    return found[0], found[1]


def _lower(node: ir.Node, bias: ir.Value, rotation: tuple[ir.Value, ir.Value] | None) -> None:
    nodes = Builder(node.graph)  # type: ignore[arg-type]
    past_key, past_value = given(node.inputs[3]), given(node.inputs[4])
    heads, kv_heads = node.attributes["num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
    size, packed = fixed_size(past_key, 3), node.inputs[1] is None
    parts = nodes.split(given(node.inputs[0]), [heads * size, kv_heads * size, kv_heads * size]) if packed \
        else [given(value) for value in node.inputs[:3]]
    query, key, value = (
        nodes.add("Transpose", nodes.add("Reshape", part, nodes.ints(0, 0, count, size)), perm=[0, 2, 1, 3])
        for part, count in zip(parts, (heads, kv_heads, kv_heads), strict=True))
    if rotation is not None:
        width = fixed_size(node.inputs[7], 1)  # half of what is rotated of each head
        query, key = (_rotate(nodes, part, *rotation, width, size) for part in (query, key))
    keys, values = nodes.add("Concat", past_key, key, axis=2), nodes.add("Concat", past_value, value, axis=2)
    scale = node.attributes.get_float("scale", 0.0) or size**-0.5
    query = nodes.add("Mul", query, nodes.scalar(scale))
    shared = heads != kv_heads  # several query heads look through one key head: they stand below one another
    if shared:
        query = nodes.add("Reshape", query, nodes.ints(0, kv_heads, -1, size))
    scores = nodes.add("MatMul", query, nodes.add("Transpose", keys, perm=[0, 1, 3, 2]))
    if shared:
        scores = nodes.add("Reshape", scores, nodes.ints(0, heads, -1, 0))
    softcap = node.attributes.get_float("softcap", 0.0)
    if softcap:
        scores = nodes.add("Mul", nodes.add("Tanh", nodes.add("Div", scores, nodes.scalar(softcap))),
                           nodes.scalar(softcap))
    weights = nodes.add("Softmax", nodes.add("Add", scores, bias), axis=-1)
    if shared:
        weights = nodes.add("Reshape", weights, nodes.ints(0, kv_heads, -1, 0))
    mixed = nodes.add("MatMul", weights, values)
    if shared:
        mixed = nodes.add("Reshape", mixed, nodes.ints(0, heads, -1, size))
    mixed = nodes.add("Transpose", mixed, perm=[0, 2, 1, 3])
    result = nodes.add("Reshape", mixed, nodes.ints(0, 0, heads * size))
    nodes.replace(node, [result, keys, values])


def _rotate(nodes: Builder, heads: ir.Value, cos: ir.Value, sin: ir.Value, width: int, size: int) -> ir.Value:
    """Turn pairs (i, i + width) of each head; what stands behind them stays."""
    rest = [size - 2 * width] if size > 2 * width else []
    first, second, *kept = nodes.split(heads, [width, width, *rest])
    turned = [nodes.add("Sub", nodes.add("Mul", first, cos), nodes.add("Mul", second, sin)),
              nodes.add("Add", nodes.add("Mul", second, cos), nodes.add("Mul", first, sin))]
    return nodes.add("Concat", *turned, *kept, axis=-1)
