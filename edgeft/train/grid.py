"""The frozen base on an integer grid, so that what is trained is what will run: `train --device` or `--quant`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edgeft.contract.device import Device
from edgeft.contract.errors import Faults, UsageError
from edgeft.contract.grid import Quant, digest, fingerprint
from edgeft.contract.heads import layout
from edgeft.contract.tensors import Weights

from .classify import head_parameters
from .packed import pack
from .settings import TrainSettings

BLOCK = 128  # as the device files have it


def grid_of(device: Device | None, settings: TrainSettings) -> Quant | None:
    """The grid that was asked for; None for floats. UsageError where flags and device say different things."""
    given: dict[str, Any] = {name: value for name in ("quant", "block", "rounding")
                             if (value := getattr(settings, name)) not in ("auto", 0)}
    if settings.asymmetric:
        given["symmetric"] = False
    if device is None:
        if given and "quant" not in given:
            raise UsageError(f"--{next(iter(given)).replace('symmetric', 'asymmetric')}: describes a grid, and neither "
                             "--quant nor --device names one.")
        return Quant(given["quant"], settings.block or BLOCK, not settings.asymmetric, given.get("rounding", "rtn")) \
            if given else None
    faults = Faults(f"{device.name}: is another grid than the one asked for")
    for name, value in given.items():
        if value != getattr(device.graph, name):
            faults.add(name, declared=value, found=f"{getattr(device.graph, name)} in the device file")
    faults.raise_if_any("Leave out either --device or the grid's own options.", UsageError)
    grid = device.graph.grid()
    return grid if grid.bits else None


def describe(grid: Quant, device: Device | None, digests: dict[str, str]) -> dict[str, Any]:
    """As edgeft.json holds it: `tensors` has a digest of each tensor's codes, scales and zero points."""
    return {"device": device.name if device else None, "quant": grid.kind, "block": grid.block,
            "symmetric": grid.symmetric, "rounding": grid.rounding, "fingerprint": fingerprint(digests),
            "tensors": digests}


def on_grid(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """The layers whose weights the exporter stores as integers, each tensor once, under its first layer's name."""
    done: set[int] = set()
    head = layout(model.config.model_type).modules
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, (nn.Linear, nn.Embedding, Conv1D)) or id(weight) in done or name in head:
            continue
        if isinstance(module, nn.Embedding) and module is not model.get_input_embeddings():
            continue  # position tables stay float in the graph
        done.add(id(weight))
        yield name, module


def put_on_grid(model: PreTrainedModel, grid: Quant, *, packed: bool = False, table: bool = True) -> dict[str, str]:
    """Round linear layers, language head and embedding in place, as the exporter does; a classifier's head stays.

    The codes that export ships are made from the same base by the same quantizer, so they are these very ones; the
    digests returned, by tensor, let it prove that. With `packed` the layers keep the codes instead of floats, but for
    the embedding (and what shares its tensor) where not `table`.
    """
    digests = {}
    for name, module in list(on_grid(model)):
        turned = isinstance(module, Conv1D)
        values = module.weight.detach().float().cpu().numpy()
        found = grid.quantize(np.ascontiguousarray(values.T if turned else values))
        digests[f"{name}.weight"] = digest([found])
        if packed and (table or module is not model.get_input_embeddings()):
            pack(model, module, found)
            continue
        rounded = found.dequantize()
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(np.ascontiguousarray(rounded.T if turned else rounded)))
    if packed:
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # the last ones that keep the base's whole file mapped
    return digests


def remember_floats(model: PreTrainedModel, folder: Path) -> None:
    """Let each layer on the grid tell its weight before rounding, read again from the base's folder when asked for.

    What starts from the quantization error (LoftQ) calls `module.float_weight()`; nothing is kept in memory.
    """
    stored = Weights(folder)
    for name, module in list(on_grid(model)):
        if f"{name}.weight" in stored:
            module.float_weight = partial(_read, stored, f"{name}.weight")


def _read(stored: Weights, name: str) -> torch.Tensor:
    return torch.from_numpy(np.array(stored[name], np.float32))


def check_frozen(base: PreTrainedModel, before: dict[str, int], method: str) -> None:
    """A method that changes the base's own weights leaves the grid at its first step: refuse it."""
    head = head_parameters(base)
    learning = [name for name, parameter in base.named_parameters()
                if parameter.requires_grad and id(parameter) in before.values() and name not in head]
    if learning:
        raise UsageError(f"{method}: changes the base's own weights ({learning[0]} and {len(learning) - 1} more), so "
                         "they cannot stay on a device's grid. Train it without --device and --quant; export rounds "
                         "it.")
