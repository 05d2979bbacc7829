"""What a method learned, on disk as training leaves it, and back in a model as verification loads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from edgeft.contract import TaskOptions
from edgeft.contract.artifact import LEARNED, Artifact
from edgeft.contract.slots import Tensors
from edgeft.contract.tensors import NAMES, write_tensors

from .case import Attached, Case, RuleBroken, seeded
from .models import owner_of


@contextmanager
def saved(case: Case, model: nn.Module) -> Iterator[Artifact]:
    """A folder as `edgeft train` writes it: PEFT's own for a PEFT model, learned.safetensors from collect() else."""
    with TemporaryDirectory(prefix="edgeft-kit-") as name:
        folder = Path(name)
        if isinstance(model, PeftModel):
            with seeded(0):
                model.save_pretrained(str(folder), save_embedding_layers=False)
            yield Artifact(folder, "peft", {})
        else:
            write_tensors(folder / LEARNED, collected(case, model), {"method": case.method.name})
            yield Artifact(folder, "learned", {})


def collected(case: Case, model: nn.Module) -> Tensors:
    """What collect() returns, if it can be written at all."""
    with seeded(0):
        learned = case.method.collect(model)
    if not learned:
        raise RuleBroken(f"{case.name}: collect() returned nothing, so nothing of the training would be kept")
    for name, array in learned.items():
        if not isinstance(array, np.ndarray) or array.dtype not in NAMES:
            kind = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
            raise RuleBroken(f"{case.name}: collect() must return numpy arrays, and {name} is of type {kind} "
                             "(parameter.detach().float().cpu().numpy())")
        if "." in name and owner_of(name, case.base_model()) is None:
            raise RuleBroken(f"{case.name}: collect() must name tensors after modules of the base, and there is none "
                             f"for {name}")
    return learned


def loaded(case: Case, artifact: Artifact) -> nn.Module:
    """A fresh base with what the folder holds; drawn from another seed than it was trained with."""
    if artifact.kind == "peft":
        with seeded(5):
            return PeftModel.from_pretrained(case.base_model(), str(artifact.folder)).eval()
    model = case.attach(seed=5).model
    learned = {name: torch.from_numpy(np.array(array)) for name, array in artifact.learned().items()}
    try:
        unknown = model.load_state_dict(learned, strict=False).unexpected_keys
    except RuntimeError as error:
        raise RuleBroken(f"{case.name}: what collect() returned does not fit the attached model: {error}") from None
    if unknown:
        raise RuleBroken(f"{case.name}: collect() names what the attached model does not have: "
                         f"{', '.join(unknown[:4])}. Use the names of its state_dict().")
    return model


def for_export(case: Case, attached: Attached) -> tuple[Tensors, Any]:
    """Learned tensors, read-only, and options as export gets them; a wrong collect() does not spoil them.

    From a PEFT folder both are read back. Otherwise the values are the parameters' own, under the names that the
    method trains or collects.
    """
    if isinstance(attached.model, PeftModel):
        with saved(case, attached.model) as artifact:
            if artifact.peft_type != case.method.peft_type:
                raise RuleBroken(f"{case.name}: trains a PEFT model of type {artifact.peft_type!r} and declares "
                                 f"peft_type {case.method.peft_type!r}, so export would not find its method")
            learned = {name: np.array(array) for name, array in artifact.learned().items()}
            options = case.method.read_peft(artifact.peft_config)
            if isinstance(options, TaskOptions):  # PEFT knows no names of tasks, so export takes the run's
                options = replace(options, tasks=case.options.tasks, task=case.options.task)
    else:
        state = attached.model.state_dict()
        names = {*attached.own, *_named_by_collect(case, attached.model)}
        learned = {name: tensor.detach().float().numpy().copy() for name, tensor in state.items() if name in names}
        options = case.options
    for array in learned.values():
        array.flags.writeable = False
    return learned, options


def _named_by_collect(case: Case, model: nn.Module) -> set[str]:
    try:
        return set(case.method.collect(model))
    except Exception:  # the rule about saving will tell
        return set()
