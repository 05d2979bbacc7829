"""Checkpoints without pickle: trainable weights, optimizer and random state as safetensors."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeft.contract.errors import EdgeftError
from edgeft.contract.files import read_json, staged, write_json
from edgeft.contract.tensors import TensorFile, write_tensors

from .launch import is_main
from .shard import like, whole


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name; a tensor shared by two names appears once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any],
         keep: int) -> None:
    """Write `folder/step-N` whole or not at all, then drop the oldest beyond `keep`.

    Every process calls it and the main one writes: what is split is whole in a checkpoint, so that any number of
    processes can go on with it.
    """
    tensors: dict[str, Any] = {}
    for name, tensor in _tensors(model, optimizer):
        value = whole(tensor.detach())
        if is_main():
            tensors[name] = value.cpu().numpy()
    if not is_main():
        return
    with staged(folder / f"step-{step:08d}", replace=True) as stage:
        write_tensors(stage / "state.safetensors", tensors)
        write_json(stage / "state.json", {"step": step, **state})
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)  # the newest is what counts; what is left goes with the next


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in trainable(model).items():
        yield f"weight.{name}", parameter
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"optimizer.{key}.{name}", value
    yield "random.cpu", torch.get_rng_state()
    if torch.cuda.is_available():
        yield "random.cuda", torch.cuda.get_rng_state()


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint."""
    return max((path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name)), default=None)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint back into model, optimizer and random state; returns what `save` was given as state."""
    file = TensorFile(path / "state.safetensors")
    parameters = trainable(model)
    stored = {name.removeprefix("weight.") for name in file if name.startswith("weight.")}
    if stored != set(parameters):
        raise EdgeftError(f"{path}: holds other parameters than this method trains "
                          f"({len(stored)} against {len(parameters)}).")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(like(_read(file, f"weight.{name}"), parameter))
    for key in file:
        if key.startswith("optimizer."):
            _, kind, name = key.split(".", 2)
            optimizer.state[parameters[name]][kind] = like(_read(file, key), parameters[name])
    torch.set_rng_state(_read(file, "random.cpu"))
    if "random.cuda" in file and torch.cuda.is_available():
        torch.cuda.set_rng_state(_read(file, "random.cuda"))
    return read_json(path / "state.json")


def _read(file: TensorFile, name: str) -> torch.Tensor:
    return torch.from_numpy(np.array(file[name]))
