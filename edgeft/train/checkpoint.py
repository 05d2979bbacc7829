"""Checkpoints without pickle: trainable weights, optimizer and random state as safetensors."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeft.contract.errors import EdgeftError
from edgeft.contract.files import read_json, staged, write_json
from edgeft.contract.tensors import TensorFile, write_tensors


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name; a tensor shared by two names appears once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any],
         keep: int) -> None:
    """Write `folder/step-N` whole or not at all, then drop the oldest beyond `keep`."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in trainable(model).items():
        tensors[f"weight.{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    with staged(folder / f"step-{step:08d}", replace=True) as stage:
        write_tensors(stage / "state.safetensors", {name: value.detach().cpu().numpy()
                                                    for name, value in tensors.items()})
        write_json(stage / "state.json", {"step": step, **state})
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint."""
    return max((path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name)), default=None)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint back into model, optimizer and random state; returns what `save` was given as state."""
    file = TensorFile(path / "state.safetensors")
    tensors = {name: torch.from_numpy(np.array(file[name])) for name in file}
    parameters = trainable(model)
    stored = {name.removeprefix("weight.") for name in tensors if name.startswith("weight.")}
    if stored != set(parameters):
        raise EdgeftError(f"{path}: holds other parameters than this method trains "
                          f"({len(stored)} against {len(parameters)}).")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, kind, name = key.split(".", 2)
            parameter = parameters[name]
            optimizer.state[parameter][kind] = value.to(parameter.device)
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return read_json(path / "state.json")
