"""The base graph of an encoder, traced: token ids and mask to hidden states; and a decoder's hidden states."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeft.contract.bundle import LOGITS_TO_KEEP
from edgeft.contract.errors import EdgeftError

from .graph import BaseGraph, Origin
from .linears import find_groups
from .nodes import integers
from .trace import _quiet
from .traced import canonical_names, gemm_to_matmul, optimize
from .weights import Source

HIDDEN = "hidden"


def build_encoder(model: Any, source: Source) -> BaseGraph:
    """Trace an encoder's body: `input_ids`, `attention_mask` [batch, seq] to `hidden [batch, seq, hidden]`."""
    prefix, body = model.base_model_prefix, model.base_model
    try:
        with _quiet(), torch.no_grad(), _hidden_forward(body), _rows_in_positions(body):
            traced = _export(body)
    except Exception as error:  # torch.export raises many kinds
        raise EdgeftError(f"{type(model).__name__}: cannot become a graph "
                          f"({' '.join(str(error).split())[:300]})") from error
    weights = set(canonical_names(body).values())
    optimize(traced, weights)
    gemm_to_matmul(traced)
    for value in traced.graph.inputs:
        value.shape = ir.Shape(["batch", "seq"])
    hidden = traced.graph.outputs[0]
    hidden.shape = ir.Shape(["batch", "seq", model.config.hidden_size])
    origins: dict[str, Origin] = {}
    for name, value in list(traced.graph.initializers.items()):
        if name not in weights:
            continue  # a constant of the trace
        whole = f"{prefix}.{name}"
        if whole not in set(source):
            raise EdgeftError(f"{type(model).__name__}: its weights lack {whole}.")
        shape = source.shape(whole)
        value.name, value.const_value = whole, None
        origins[whole] = Origin(whole, shape, tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))), 0)
    return BaseGraph(traced, origins, "transformers", "none")


def expose_hidden(base: BaseGraph, *, keep_logits: bool) -> None:
    """Make what the head reads one more output of a decoder's graph; without logits the head itself goes."""
    graph = base.model.graph
    heads = {linear.node: linear for group in find_groups(base) for linear in group.linears}
    node = graph.outputs[0].producer()
    while node is not None and node not in heads:  # back through a cap or a scale on the logits
        node = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    read = node.inputs[0] if node is not None else None
    if node is None or read is None:
        raise EdgeftError("This graph's logits come from no linear layer, so it cannot carry a classification head.")
    out = ir.node("Identity", [read])
    out.outputs[0].name, out.outputs[0].type = HIDDEN, ir.TensorType(ir.DataType.FLOAT)
    out.outputs[0].shape = ir.Shape(["batch", "seq", heads[node].in_features])
    graph.append(out)
    if keep_logits:
        graph.outputs.append(out.outputs[0])
        _keep_last(graph, node, read)
    else:
        graph.outputs[0] = out.outputs[0]
        RemoveUnusedNodesPass()(base.model)
        base.origins = {name: origin for name, origin in base.origins.items() if name in graph.initializers}


def _keep_last(graph: ir.Graph, head: ir.Node, read: ir.Value) -> None:
    """An optional input as transformers has it: logits of the last `logits_to_keep` tokens; 0, the default: of all."""
    keep, end, axis = (integers(graph, name, value) for name, value in (
        (LOGITS_TO_KEEP, 0), ("const.last", np.iinfo(np.int64).max), ("const.sequence_axis", 1)))
    graph.inputs.append(keep)
    start = ir.node("Neg", [keep])
    last = ir.node("Slice", [read, start.outputs[0], end, axis])
    graph.insert_before(head, [start, last])
    head.replace_input_with(0, last.outputs[0])


def _export(body: Any) -> ir.Model:
    from torch.export import Dim
    from transformers.exporters import OnnxConfig, OnnxExporter

    ids = torch.arange(10).reshape(2, 5) % (body.config.vocab_size - 2) + 1
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0  # a mask of ones would be pruned
    axes = {name: {0: Dim.AUTO, 1: Dim.AUTO} for name in ("input_ids", "attention_mask")}
    program: ir.Model = OnnxExporter().export(body, {"input_ids": ids, "attention_mask": mask},
                                              OnnxConfig(dynamic_shapes=axes, optimize=False)).program
    for value in program.graph.inputs:
        if any(isinstance(size, int) for size in value.shape or ()):
            raise EdgeftError(f"{value.name} {value.shape} is fixed to the sample's size")
    return program


@contextlib.contextmanager
def _hidden_forward(body: Any) -> Iterator[None]:
    """While inside, the encoder takes ids and mask and gives its last hidden states alone."""
    original = body.forward

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {HIDDEN: original(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state}

    body.forward = forward
    try:
        yield
    finally:
        del body.forward


@contextlib.contextmanager
def _rows_in_positions(body: Any) -> Iterator[None]:
    """While inside, DeBERTa projects its relative positions once per row: each row may have an adapter of its own."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

    attention: Any = DisentangledSelfAttention
    original = attention.disentangled_attention_bias

    def bias(self: Any, query_layer: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows = query_layer.shape[0] // self.num_attention_heads
        return original(_PerRow(self, rows), query_layer, *rest)

    attention.disentangled_attention_bias = bias
    try:
        yield
    finally:
        attention.disentangled_attention_bias = original


class _PerRow:
    """DeBERTa's attention as its positions see it: inputs have all rows already, so nothing is left to repeat."""

    def __init__(self, attention: Any, rows: int) -> None:
        self._attention, self._rows = attention, rows

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._attention, name)
        if not name.endswith("_proj"):
            return found
        return lambda positions: found(positions.expand(self._rows, -1, -1))

    def transpose_for_scores(self, x: torch.Tensor, heads: int) -> Any:
        return _Repeated(self._attention.transpose_for_scores(x, heads))


class _Repeated:
    """A tensor whose `repeat` is done."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def repeat(self, *sizes: Any) -> torch.Tensor:
        return self._tensor
