"""Graphs of fixed shapes for accelerators that take no others: one for a chunk of a prompt, one for a single token.

Both are made from model.onnx, over the same weights, in batches of one. The cache holds `context` rows and goes in
whole; only the new rows come out, and whoever runs the graph puts them where they belong. A chunk is padded on the
left, so that the last position is always a real token, and the head runs on that alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeft.contract.bundle import GRAPH, LOGITS_TO_KEEP, STATIC_DECODE, STATIC_PREFILL, SlotGroup
from edgeft.contract.device import Graph
from edgeft.contract.errors import EdgeftError

from .nodes import fixed_size, given, take_over
from .traced import optimize

FOLDED = 1 << 26  # bytes; a mask of causality for a chunk of 128 and a context of 16k has 8 MiB


def write_static(folder: Path, device: Graph, context: int, slots: Sequence[SlotGroup],
                 rank: int) -> tuple[dict[str, Any], dict[str, ir.Model]]:
    """Write both graphs beside model.onnx; returns what the manifest says of them, and the graphs by file.

    `rank`: what the adapters of a request may have together; the slots are inputs of that size.
    """
    chunk = min(device.chunk, context)
    made = {file: fixed(folder, seq, context, rank) for file, seq in ((STATIC_PREFILL, chunk), (STATIC_DECODE, 1))}
    for file, model in made.items():
        ir.save(model, folder / file)
    return {"prefill": STATIC_PREFILL, "decode": STATIC_DECODE, "chunk": chunk, "cache": context,
            "rank": rank if slots else 0, "present": "new rows"}, made


def fixed(folder: Path, seq: int, context: int, rank: int) -> ir.Model:
    """A copy of a bundle's graph in which every size is a number."""
    model = ir.load(folder / GRAPH)
    fix(model, seq, context, rank)
    return model


def fix(model: ir.Model, seq: int, cache: int, rank: int) -> None:
    """Give every size a number, in place; EdgeftError where one depends on more than the inputs' shapes."""
    graph = model.graph
    for value in list(graph.inputs):
        name = str(value.name)
        if name == LOGITS_TO_KEEP:
            graph.inputs.remove(value)
            value.const_value = ir.tensor(np.ones(1, np.int64), name=name)
            continue
        if value.is_initializer():  # a slot
            del graph.initializers[name]
            value.const_value = None
            value.shape = ir.Shape([_slot_size(size, rank) for size in value.shape or ()])
        else:
            value.shape = ir.Shape(_input_shape(value, seq, cache))
    _outputs(graph, seq)
    for node in graph:
        for value in node.outputs:
            if value not in graph.outputs:
                value.shape = None  # inferred anew
    with _plain_products(graph):
        optimize(model, {name for name, value in graph.initializers.items()
                         if isinstance(value.const_value, ir.ExternalTensor)}, FOLDED)
    RemoveUnusedNodesPass()(model)
    open_shapes = [str(value.name) for node in graph for value in node.outputs if value.name and value.uses()
                   and (value.shape is None or not value.shape.is_static())]
    if open_shapes:
        raise EdgeftError(f"{len(open_shapes)} values of this graph keep no fixed shape "
                          f"({', '.join(open_shapes[:3])}), and the device takes no others.")


@contextmanager
def _plain_products(graph: ir.Graph) -> Iterator[None]:
    """While inside, each MatMulNBits is a MatMul with an input of its own: nobody infers shapes behind the former."""
    held, kept = dict[str, ir.Node](), list[ir.Value]()
    own = len(graph.inputs)
    for node in [node for node in graph if node.op_type == "MatMulNBits"]:
        shape = ir.Shape([node.attributes[name].as_int() for name in ("K", "N")])
        weight = ir.Value(name=f"{node.name}.stands_in", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        graph.inputs.append(weight)
        held[str(weight.name)] = node
        _swap(node, ir.node("MatMul", [node.inputs[0], weight], name=node.name))
        kept += [graph.initializers.pop(str(value.name)) for value in node.inputs[1:] if value is not None]
    yield
    del graph.inputs[own:]
    for node in [node for node in graph if node.op_type == "MatMul"]:
        integer = held.get(str(given(node.inputs[1]).name))
        if integer is not None:
            _swap(node, ir.node("MatMulNBits", [node.inputs[0], *integer.inputs[1:]], integer.attributes,
                                domain=integer.domain, name=integer.name))
    for value in kept:
        graph.register_initializer(value)


def _swap(old: ir.Node, new: ir.Node) -> None:
    """Put a node of one output in another's place."""
    take_over(old.outputs[0], new.outputs[0])
    assert old.graph is not None
    old.graph.insert_before(old, new)
    old.graph.remove(old)


def _slot_size(size: Any, rank: int) -> int:
    """A size of a slot: of a row, of so many ranks side by side, or a number already."""
    text = str(size)
    return 1 if text == "rows" else rank * int(text.removeprefix("rank_x")) if text.startswith("rank_x") else int(text)


def _input_shape(value: ir.Value, seq: int, cache: int) -> list[int]:
    if value.name in ("input_ids", "attention_mask"):
        return [1, seq if value.name == "input_ids" else cache + seq]
    return [1, fixed_size(value, 1), cache, fixed_size(value, 3)]


def _outputs(graph: ir.Graph, seq: int) -> None:
    """Logits of the last token, and of keys and values the new rows; nothing else."""
    logits = graph.outputs[0]
    logits.shape = ir.Shape([1, 1, fixed_size(logits, 2)])
    kept = [logits]
    for value in list(graph.outputs)[1:]:
        if not str(value.name).startswith("present."):
            continue
        joined = value.producer()
        fresh = joined.inputs[1] if joined is not None and joined.op_type == "Concat" else None
        if joined is None or fresh is None or len(joined.inputs) != 2:
            raise EdgeftError(f"{value.name}: is not the past with new rows behind it, so its shape cannot be fixed.")
        name = value.name
        value.name, fresh.name = f"{name}.whole", name
        fresh.shape, fresh.type = ir.Shape([1, fixed_size(value, 1), seq, fixed_size(value, 3)]), value.type
        kept.append(fresh)
    graph.outputs.clear()
    graph.outputs.extend(kept)

