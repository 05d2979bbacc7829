"""A strange graph in plain terms: float32, each linear layer a MatMul, each weight an initializer that can be read."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)

from .given_forms import FORMS, Kinds

HALF = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}


def make_plain(model: ir.Model) -> Kinds:
    """Rewrite in place; returns how the numbers of each weight are held in the file where not in float32.

    EdgeftError for a form of linear layer that is not known here.
    """
    InlinePass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    IdentityEliminationPass()(model)
    kinds: Kinds = {}
    for node in list(model.graph):
        rewrite = FORMS.get(node.op_type)
        if rewrite is not None:
            rewrite(model.graph, node, kinds)
    _widen(model, kinds)
    RemoveUnusedNodesPass()(model)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]
    return kinds


def _widen(model: ir.Model, kinds: Kinds) -> None:
    """Half floats become float32 throughout: constants, casts, what nodes make, inputs and outputs."""
    graph = model.graph
    for name, value in graph.initializers.items():
        if value.dtype in HALF and value.const_value is not None:
            kinds[name] = HALF[value.dtype]
            tensor, shape = value.const_value, ir.Shape(value.const_value.shape.numpy())
            value.const_value = ir.LazyTensor(partial(_as_float, tensor), ir.DataType.FLOAT, shape, name=name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in graph:
        for key in ("to", "dtype", "output_dtype", "stash_type"):
            if key in node.attributes and node.attributes[key].as_int() in HALF:
                node.attributes[key] = ir.AttrInt64(key, int(ir.DataType.FLOAT))
        filled = node.attributes.get("value")
        if filled is not None and node.op_type == "ConstantOfShape" and filled.as_tensor().dtype in HALF:
            node.attributes["value"] = ir.AttrTensor("value", _as_float(filled.as_tensor()))
        for value in node.outputs:
            if value.dtype in HALF:
                value.type = ir.TensorType(ir.DataType.FLOAT)
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype in HALF:
            value.type = ir.TensorType(ir.DataType.FLOAT)


def _as_float(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32))
