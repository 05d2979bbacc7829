"""`train --device`: the frozen base on the device's own integer grid, so that what is trained is what will run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edgeft.contract.device import Device
from edgeft.contract.errors import UsageError
from edgeft.contract.grid import BITS, quantize
from edgeft.contract.heads import layout

from .classify import head_parameters


def grid_of(device: Device) -> dict[str, Any] | None:
    """A device's grid, as edgeft.json records it; None for devices that run floats."""
    if device.graph.quant not in BITS:
        return None
    return {"device": device.name, "quant": device.graph.quant, "block": device.graph.block}


def put_on_grid(model: PreTrainedModel, quant: str, block: int) -> None:
    """Round linear layers, language head and embedding in place, as the exporter does; a classifier's head stays.

    The codes that export ships are made from the same base by the same quantizer, so they are these very ones.
    """
    bits = BITS[quant]
    done: set[int] = set()
    head = layout(model.config.model_type).modules
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, (nn.Linear, nn.Embedding, Conv1D)) or id(weight) in done or name in head:
            continue
        if isinstance(module, nn.Embedding) and module is not model.get_input_embeddings():
            continue  # position tables stay float in the graph
        turned = isinstance(module, Conv1D)
        values = module.weight.detach().float().cpu().numpy()
        grid = quantize(np.ascontiguousarray(values.T if turned else values), bits, block).dequantize()
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(np.ascontiguousarray(grid.T if turned else grid)))
        done.add(id(module.weight))


def check_frozen(base: PreTrainedModel, before: dict[str, int], method: str) -> None:
    """A method that changes the base's own weights leaves the grid at its first step: refuse it."""
    head = head_parameters(base)
    learning = [name for name, parameter in base.named_parameters()
                if parameter.requires_grad and id(parameter) in before.values() and name not in head]
    if learning:
        raise UsageError(f"{method}: changes the base's own weights ({learning[0]} and {len(learning) - 1} more), so "
                         "they cannot stay on a device's grid. Train it without --device; export rounds it.")
