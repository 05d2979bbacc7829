"""Contrib and newest operators written out in standard ones of opset 21, for providers that take no others.

One pass a file: lower_attention.py, lower_norms.py; integer weights are stored so from the start (dequantize.py).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from .lower_attention import MASKED, lower_attention
from .lower_norms import lower_norms

OPSET = 21  # the first with blocks in DequantizeLinear
IR_VERSION = 10
SMALLEST = float(np.finfo(np.float16).min)
NEWER = {"Attention", "RMSNormalization", "RotaryEmbedding", "Swish", "TensorScatter"}  # of opsets 23 and 24


def lower(model: ir.Model) -> bool:
    """Rewrite a decoder's graph in place; False where an operator is left that has no standard form here."""
    lower_norms(model.graph)
    lower_attention(model.graph)
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
    if not_standard(model.graph):
        return False
    declare(model)
    return True


def not_standard(graph: ir.Graph) -> list[str]:
    """Operators that are not of the standard's opset 21."""
    return sorted({node.op_type for node in graph if node.domain not in ("", "ai.onnx") or node.op_type in NEWER})


def declare(model: ir.Model) -> None:
    """State the opset and the file format that the graph keeps to."""
    model.functions.clear()
    for domain in list(model.opset_imports):
        del model.opset_imports[domain]
    model.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION


def finite_masks(model: ir.Model) -> None:
    """Replace infinities, and numbers that are infinite in float16, among a trace's constants: they are its masks'."""
    for value in model.graph.initializers.values():
        found = _finite(value.const_value)
        if found is not None:
            value.const_value = found
    for node in model.graph:
        for name, attribute in node.attributes.items():
            if node.op_type == "Constant" and attribute.type == ir.AttributeType.TENSOR:
                found = _finite(attribute.as_tensor())
                if found is not None:
                    node.attributes[name] = ir.AttrTensor(name, found)
            elif node.op_type == "Constant" and attribute.type == ir.AttributeType.FLOAT \
                    and attribute.as_float() < SMALLEST:
                node.attributes[name] = ir.AttrFloat32(name, MASKED)


def _finite(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
    """The same with such numbers replaced; None where it has none."""
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    array = tensor.numpy()
    if not array.size or array.min() >= SMALLEST:
        return None
    return ir.tensor(np.where(array < SMALLEST, np.float32(MASKED), array), name=tensor.name)
