"""Base weights as the device computes with them: what a method's slots must fit where they depend on the weights."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from transformers.pytorch_utils import Conv1D

from edgeft.contract.grid import Quant
from edgeft.contract.slots import Array

from .base import Base

Round = Callable[[str, Array], Array]


def rounding(base: Base, quant: Quant, modules: Collection[str]) -> Round | None:
    """A function that rounds a base tensor as the bundle stores it; None where it stores floats as they are.

    `modules` are the linear layers of the graph; the embedding is rounded with them, as the exporter does.
    """
    if quant.kind == "fp32":
        return None
    skeleton = base.skeleton()
    turned = {f"{name}.weight" for name, module in skeleton.named_modules() if isinstance(module, Conv1D)}
    rounded = {f"{module}.weight" for module in modules}
    embedding = skeleton.get_input_embeddings()
    rounded |= {f"{name}.weight" for name, module in skeleton.named_modules() if module is embedding}

    def on_device(name: str, array: Array) -> Array:
        if name not in rounded:
            return array
        if not quant.bits:
            return array.astype(np.float16).astype(np.float32)
        rows = np.ascontiguousarray(array.T if name in turned else array)
        grid = quant.quantize(rows).dequantize()
        return grid.T if name in turned else grid

    return on_device
