"""The contract's inputs and outputs for a graph that others made: names, shapes, and positions from the mask."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeft.contract.errors import Faults

from .graph import INPUTS
from .nodes import Builder, constant

CACHE = re.compile(r"(past_key_values|past|present|present_key_values)\.(\d+)\.(key|value)")
POSITIONS = "position_ids"
KEEP = ("num_logits_to_keep", "logits_to_keep")  # of how many last tokens; 0: of all. Ours is added later


def give_contract(who: str, graph: ir.Graph, config: Any) -> None:
    """Rename and order in place; EdgeftError for inputs and outputs that the contract has no place for."""
    faults = Faults(f"{who}: is not a decoder with a cache of keys and values")
    values = {str(value.name): value for value in (*graph.inputs, *graph.outputs)}
    given: dict[str, ir.Value] = {}
    for name, value in values.items():
        found = CACHE.fullmatch(name)
        past = value in graph.inputs
        if found:
            given[f"{'past_key_values' if past else 'present'}.{int(found[2])}.{found[3]}"] = value
        elif name in (*INPUTS, "logits"):
            given[name] = value
        elif past and name in KEEP:
            zero = constant(graph, "const.keep_all", np.zeros([1] * len(value.shape or ()), np.int64))
            ir.convenience.replace_all_uses_with(value, zero)
        elif past and name != POSITIONS:
            faults.add(f"input {name} {value.shape}: has no place in the contract's graph")
    layers = config.num_hidden_layers
    cache = [f"{i}.{part}" for i in range(layers) for part in ("key", "value")]
    inputs = [*INPUTS, *(f"past_key_values.{place}" for place in cache)]
    outputs = ["logits", *(f"present.{place}" for place in cache)]
    for name in (*inputs, *outputs):
        if name not in given:
            faults.add(f"{name}: is missing")
    for name in given.keys() - {*inputs, *outputs}:
        faults.add(f"{name}: the base has {layers} layers")
    faults.raise_if_any("Export it for text generation with a past.")
    if POSITIONS in values:
        _positions(graph, values[POSITIONS])
    graph.inputs[:] = [given[name] for name in inputs]
    graph.outputs[:] = [given[name] for name in outputs]
    heads, size = _sizes(config)
    for name, value in given.items():
        value.name = name
        value.type = ir.TensorType(ir.DataType.INT64 if name in INPUTS else ir.DataType.FLOAT)
        value.shape = ir.Shape({"input_ids": ["batch", "seq"], "attention_mask": ["batch", "total"],
                                "logits": ["batch", "seq", config.vocab_size]}.get(
            name, ["batch", heads, "past" if name.startswith("past") else "total", size]))


def _sizes(config: Any) -> tuple[int, int]:
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _positions(graph: ir.Graph, positions: ir.Value) -> None:
    """position_ids from the mask: a token's is the number of real tokens before it in its row.

    With a cache that grows, columns of the mask are rows of the cache, and the new tokens stand last. In a shared
    buffer a row's real tokens stand first, so its new ones end at the mask's sum, or, right-padded, begin at 0.
    """
    nodes = Builder(graph)
    add, number = nodes.add, nodes.ints
    ids, mask = (next(value for value in graph.inputs if value.name == name) for name in INPUTS)
    count = add("Slice", add("Shape", ids), number(1), number(2))
    if any(node.op_type == "GroupQueryAttention" for node in graph):
        total = add("ReduceSum", mask, number(1), keepdims=1)
        start = add("Max", add("Sub", total, count), number(0))
        scalar = add("Squeeze", count)
        zero, one = (add("Squeeze", number(value)) for value in (0, 1))
        found = add("Add", start, add("Range", zero, scalar, one))
    else:
        places = add("Max", add("Sub", add("CumSum", mask, add("Squeeze", number(1))), number(1)), number(0))
        found = add("Slice", places, add("Neg", count), number(2**62), number(1))
    ir.convenience.replace_all_uses_with(positions, found)
    graph.insert_before(graph[0], nodes.made)
