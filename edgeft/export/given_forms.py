"""Forms that exporters give a linear layer or an embedding's lookup, each rewritten to MatMul or Gather on floats.

What integers stand for is read as floats, lazily: whether they are a base's weights is then a matter of numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeft.contract.errors import EdgeftError
from edgeft.contract.grid import Grid
from edgeft.contract.slots import Array

from .nodes import Builder, take_over

Kinds = dict[str, str]  # initializers -> how their numbers were held, a key of match.TOLERANCES


def _reader(node: ir.Node, value: ir.Value | None) -> Callable[[], Array]:
    """What reads an input that must be in the file, perhaps behind a Reshape; the graph may change meanwhile."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Reshape":
        whole, shape = (_reader(node, part) for part in producer.inputs)
        return lambda: whole().reshape(shape())
    if value is None or value.const_value is None:
        raise EdgeftError(f"{node.op_type} {node.name}: its weight is computed in the graph, not stored in it.")
    return value.const_value.numpy


def _reader_if(node: ir.Node, index: int) -> Callable[[], Array] | None:
    value = _optional(node, index)
    return None if value is None else _reader(node, value)


def _optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _lazy(graph: ir.Graph, name: str, shape: tuple[int, ...], read: Callable[[], Array], kind: str,
          kinds: Kinds) -> ir.Value:
    """A weight whose float numbers are made when they are asked for."""
    fresh, count = name, 1
    while fresh in graph.initializers:
        fresh, count = f"{name}.{count}", count + 1
    tensor = ir.LazyTensor(lambda: ir.tensor(np.ascontiguousarray(read(), np.float32)), ir.DataType.FLOAT,
                           ir.Shape(shape), name=fresh)
    value = ir.Value(name=fresh, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    graph.register_initializer(value)
    kinds[fresh] = kind
    return value


def _put(graph: ir.Graph, node: ir.Node, op: str, inputs: list[ir.Value | None], **attributes: Any) -> ir.Value:
    made = ir.node(op, inputs, attributes, name=f"{node.name}.{op}")
    graph.insert_before(node, made)
    return made.outputs[0]


def _become(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """The node goes, and this value takes its output's place and name."""
    take_over(node.outputs[0], value)
    graph.remove(node, safe=True)


def _with_bias(graph: ir.Graph, node: ir.Node, value: ir.Value, bias: ir.Value | None) -> ir.Value:
    return value if bias is None else _put(graph, node, "Add", [value, bias])


def _product_of_bits(graph: ir.Graph, node: ir.Node, kinds: Kinds) -> None:
    """MatMulNBits(x, codes, scales, zeros, order, bias)."""
    width, out, bits, block = (node.attributes[name].as_int() for name in ("K", "N", "bits", "block_size"))
    if _optional(node, 4) is not None:
        raise EdgeftError(f"MatMulNBits {node.name}: its columns are in another order (g_idx), which is not read here.")
    if bits not in (4, 8):
        raise EdgeftError(f"MatMulNBits {node.name}: holds {bits} bits; 4 and 8 are read here.")
    codes, scales, zeros = _reader(node, node.inputs[1]), _reader(node, node.inputs[2]), _reader_if(node, 3)

    def read() -> Array:
        blocks = -(-width // block)
        found, steps = codes().reshape(out, blocks, -1), scales().astype(np.float32).reshape(out, blocks)
        points = None if zeros is None else zeros().reshape(out, -1)
        if points is None or points.dtype == np.uint8:
            return Grid(_bytes(found), steps, bits, block, width,
                        None if points is None else _bytes(points)).dequantize()
        middle = Grid(_bytes(found), steps, bits, block, width).dequantize()  # zero points that are floats
        return middle - _spread((points.astype(np.float32) - (1 << (bits - 1))) * steps, block, width)

    weight = _lazy(graph, f"{node.name}.float", (out, width), read, f"{bits} bits", kinds)
    read_, turned = node.inputs[0], _put(graph, node, "Transpose", [weight], perm=[1, 0])
    assert read_ is not None
    _become(graph, node, _with_bias(graph, node, _put(graph, node, "MatMul", [read_, turned]), _optional(node, 5)))


def _bytes(array: Array) -> NDArray[np.uint8]:
    """Packed codes are bytes, which they were stored as."""
    return array.astype(np.uint8, copy=False)


def _lookup_of_bits(graph: ir.Graph, node: ir.Node, kinds: Kinds) -> None:
    """GatherBlockQuantized(codes, ids, scales, zeros), blocks along the last axis."""
    bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 128)
    codes, ids = _reader(node, node.inputs[0]), node.inputs[1]
    scales, zeros = _reader(node, node.inputs[2]), _reader_if(node, 3)
    table = codes()
    per_byte = 8 // bits if table.dtype == np.uint8 else 1
    rows = table.shape[0]
    width = int(np.prod(table.shape[1:])) * per_byte

    def read() -> Array:
        found, steps = codes().reshape(rows, -1), scales().astype(np.float32).reshape(rows, -1)
        points = None if zeros is None else zeros()
        if found.dtype != np.uint8:  # ONNX's own 4-bit types, which numpy holds one to a byte
            if points is not None:
                found = found.astype(np.float32) - _spread(points.reshape(rows, -1), block, width)
            return found.astype(np.float32) * _spread(steps, block, width)
        blocks = steps.shape[1]
        padded = np.zeros((rows, blocks * block * bits // 8), np.uint8)
        padded[:, : found.shape[1]] = found
        return Grid(padded.reshape(rows, blocks, -1), steps, bits, block, width,
                    None if points is None else _bytes(points.reshape(rows, -1))).dequantize()

    assert ids is not None
    weight = _lazy(graph, f"{node.name}.table", (rows, width), read, f"{bits} bits", kinds)
    _become(graph, node, _put(graph, node, "Gather", [weight, ids], axis=0))


def _spread(array: Array, block: int, width: int) -> Array:
    """A value of each block for all its columns."""
    return np.repeat(array.astype(np.float32), block, axis=1)[:, :width]


def _dequantized(graph: ir.Graph, node: ir.Node, kinds: Kinds) -> None:
    """DequantizeLinear of a stored tensor; behind a QuantizeLinear it goes, and so does the rounding."""
    source = node.inputs[0]
    assert source is not None
    before = source.producer()
    if before is not None and before.op_type == "QuantizeLinear":
        value = before.inputs[0]
        assert value is not None
        ir.convenience.replace_all_uses_with(node.outputs[0], value, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        return
    lookup = before if before is not None and before.op_type == "Gather" else None  # of integers, then made floats
    stored = lookup.inputs[0] if lookup is not None else source
    assert stored is not None
    if stored.const_value is None:
        raise EdgeftError(f"DequantizeLinear {node.name}: reads integers that the graph computes.")
    codes, scale, zero = _reader(node, stored), _reader(node, node.inputs[1]), _reader_if(node, 2)
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)

    def spread(array: Array, shape: tuple[int, ...]) -> Array:
        if array.ndim == 1 and array.size > 1:
            return array.reshape([-1 if index == axis % len(shape) else 1 for index in range(len(shape))])
        if block and array.ndim == len(shape):
            return np.repeat(array, block, axis=axis).take(range(shape[axis]), axis=axis)
        return array

    def read() -> Array:
        found = codes().astype(np.float32)
        offset = 0.0 if zero is None else spread(zero().astype(np.float32), found.shape)
        return (found - offset) * spread(scale().astype(np.float32), found.shape)

    bits = 4 if stored.dtype in (ir.DataType.INT4, ir.DataType.UINT4) else 8
    shape = tuple(stored.const_value.shape.numpy())
    weight = _lazy(graph, f"{stored.name}.float", shape, read, f"{bits} bits", kinds)
    if lookup is not None:
        weight = _put(graph, node, "Gather", [weight, lookup.inputs[1]], axis=lookup.attributes.get_int("axis", 0))
    ir.convenience.replace_all_uses_with(node.outputs[0], weight)
    graph.remove(node, safe=True)


def _gemm(graph: ir.Graph, node: ir.Node, kinds: Kinds) -> None:
    """Gemm(x, W, b) on [batch * seq, in] as a MatMul on [batch, seq, in]: slots gate each row of a batch."""
    weight, read = node.inputs[1], node.inputs[0]
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    if read is None or weight is None or not plain or node.attributes.get_int("transA", False):
        raise EdgeftError(f"Gemm {node.name}: is scaled or transposed in a way that no linear layer is.")
    if node.attributes.get_int("transB", False):
        weight = _put(graph, node, "Transpose", [weight], perm=[1, 0])
    ints = Builder(graph).ints
    ids, rest = next(value for value in graph.inputs if value.name == "input_ids"), ints(-1)
    rows = _put(graph, node, "Concat", [_put(graph, node, "Shape", [ids]), rest], axis=0)
    product = _put(graph, node, "MatMul", [_put(graph, node, "Reshape", [read, rows]), weight])
    product = _with_bias(graph, node, product, _optional(node, 2))
    whole = _put(graph, node, "Shape", [weight])  # all of it: Shape has no range before opset 15
    width = _put(graph, node, "Slice", [whole, ints(1), ints(2)])
    flat = _put(graph, node, "Concat", [rest, width], axis=0)
    _become(graph, node, _put(graph, node, "Reshape", [product, flat]))


def _fused(graph: ir.Graph, node: ir.Node, kinds: Kinds) -> None:
    """FusedMatMul(x, W), its transposition told apart."""
    read, weight = node.inputs
    assert read is not None
    assert weight is not None
    if weight.const_value is None:
        return  # two computed sides: attention, which is nobody's weight
    if node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_int("transA", False):
        raise EdgeftError(f"FusedMatMul {node.name}: is scaled or transposed in a way that no linear layer is.")
    if node.attributes.get_int("transB", False):
        weight = _put(graph, node, "Transpose", [weight], perm=[1, 0])
    _become(graph, node, _put(graph, node, "MatMul", [read, weight]))


def _integer_product(graph: ir.Graph, node: ir.Node, kinds: Kinds) -> None:
    """DynamicQuantizeLinear, MatMulInteger, Cast, Mul by both scales: ONNX Runtime's dynamic quantization."""
    rounded, codes, zero = node.inputs[0], node.inputs[1], _reader_if(node, 3)
    source = rounded.producer() if rounded is not None else None
    cast = _only_user(node)
    scaled = _only_user(cast) if cast is not None and cast.op_type == "Cast" else None
    scales = [value for value in scaled.inputs if value is not cast.outputs[0]] if scaled and cast else []
    both = scales[0].producer() if scales and scales[0] is not None else None
    if source is None or source.op_type != "DynamicQuantizeLinear" or scaled is None or scaled.op_type != "Mul" \
            or both is None or both.op_type != "Mul" or codes is None or codes.const_value is None:
        raise EdgeftError(f"MatMulInteger {node.name}: is not as ONNX Runtime's dynamic quantization writes it.")
    stored = _reader(node, codes)
    scale = _reader(node, next(value for value in both.inputs if value is not source.outputs[1]))

    def read() -> Array:
        return (stored().astype(np.float32) - (0 if zero is None else zero().astype(np.float32))) * scale()

    shape = tuple(codes.const_value.shape.numpy())
    weight = _lazy(graph, f"{codes.name}.float", shape, read, "8 bits", kinds)
    whole = source.inputs[0]
    assert whole is not None
    _become(graph, scaled, _put(graph, scaled, "MatMul", [whole, weight]))


def _only_user(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 else None


def _whole_cache(graph: ir.Graph, node: ir.Node, kinds: Kinds) -> None:
    """GroupQueryAttention over a buffer as long as its window alone: the contract's holds every token."""
    node.attributes.pop("sliding_window_cache", None)


FORMS: dict[str, Callable[[ir.Graph, ir.Node, Kinds], None]] = {
    "MatMulNBits": _product_of_bits, "GatherBlockQuantized": _lookup_of_bits, "DequantizeLinear": _dequantized,
    "Gemm": _gemm, "FusedMatMul": _fused, "MatMulInteger": _integer_product,
    "GroupQueryAttention": _whole_cache}
