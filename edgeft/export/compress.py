"""`export --as-adapter`: a changed model as a LoRA, by SVD of what changed in each linear layer.

The LoRA is written as a PEFT folder and goes the way of any other; what it lost is measured against the original.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from transformers.pytorch_utils import Conv1D

from edgeft.contract.artifact import PEFT_CONFIG, PEFT_PREFIX, PEFT_WEIGHTS, Artifact
from edgeft.contract.errors import EdgeftError, Faults, UsageError
from edgeft.contract.slots import Array, Tensors
from edgeft.contract.tensors import Weights, write_tensors

from . import verify
from .adapters import Learned, understand
from .base import Base, open_base
from .foreign import check, merged_changes
from .oracle import Oracle
from .svd import factorize

if TYPE_CHECKING:
    from edgeft.plugins import Host

@dataclass
class Compression:
    """A LoRA in place of what was learned, and how much of it that holds."""

    original: Artifact
    artifact: Artifact
    rank: int
    squares: dict[str, tuple[float, float]]  # module -> squared norm of its change, and of what was kept
    lost: dict[str, float]  # changed tensors that are no linear layer's weights -> squared norm
    _folder: Any = field(repr=False)  # the temporary folder lives as long as this

    def fidelity(self, base: Base, cases: Sequence[verify.Case], answers: verify.Answers) -> dict[str, Any]:
        """How near the adapter is to the original: by weights, and by answers against it in torch in float."""
        whole = sum(change for change, _ in self.squares.values())
        kept = sum(share for _, share in self.squares.values())
        worst = min(self.squares, key=lambda name: self.squares[name][1] / self.squares[name][0])
        found = verify.distance(_logits(self.original, base, cases), answers.logits)
        return {"rank": self.rank, "kept": kept / whole, "worst_module": worst,
                "worst_kept": self.squares[worst][1] / self.squares[worst][0],
                "kept_of_all": kept / (whole + sum(self.lost.values())), "not_carried": sorted(self.lost), **found}


def compress(artifact: Artifact, base: Base, host: Host, rank: int) -> Compression:
    """The best LoRA of this rank for a tuned model, or for any artifact that can be merged into its base."""
    changed = _changed(artifact, base, host)
    layers = {name: module for name, module in base.skeleton().named_modules()
              if isinstance(module, (nn.Linear, Conv1D))}
    squares: dict[str, tuple[float, float]] = {}
    lost: dict[str, float] = {}
    tensors: dict[str, Array] = {}
    for name, (before, after) in changed.items():
        module = name.removesuffix(".weight")
        change = after - before
        if module not in layers or name == module:
            lost[name] = float(np.square(change, dtype=np.float64).sum())
            continue
        found = factorize(change.T if isinstance(layers[module], Conv1D) else change, rank)
        squares[module] = found.squares, found.kept
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = _padded(found.a.T, (rank, found.a.shape[0]))
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = _padded(found.b.T, (found.b.shape[1], rank))
    if not squares:
        raise EdgeftError(f"{artifact.folder}: no linear layer differs from {base.name}, so there is nothing that an "
                          "adapter could carry" + (f" (changed: {', '.join(sorted(lost)[:3])})." if lost else "."))
    folder = tempfile.TemporaryDirectory(prefix="edgeft-")
    where = Path(folder.name)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base.folder.resolve()),
              "r": rank, "lora_alpha": rank, "target_modules": sorted(squares), "bias": "none",
              "fan_in_fan_out": any(isinstance(layers[module], Conv1D) for module in squares)}
    (where / PEFT_CONFIG).write_text(json.dumps(config))
    write_tensors(where / PEFT_WEIGHTS, tensors)
    record: dict[str, Any] = {key: artifact.record[key] for key in ("prompt", "samples", "forgetting")
                              if key in artifact.record}
    return Compression(artifact, Artifact(where, "peft", record), rank, squares, lost, folder)


def base_name(artifact: Artifact, given: str | None) -> str:
    """The base that a change is measured against; UsageError if none is known."""
    if given:
        return given
    if not artifact.base:
        raise UsageError(f"{artifact.folder}: does not say which base it was tuned from. Name it with --base.")
    if artifact.method and not artifact.base_fingerprint:
        raise UsageError(f"{artifact.folder}: was trained from random weights, so it is a change of no base. Export it "
                         "as a model of its own, without --as-adapter.")
    return artifact.base


def _changed(artifact: Artifact, base: Base, host: Host) -> dict[str, tuple[Array, Array]]:
    """Every tensor that differs from the base: (before, after), a tied head's beside its embedding's."""
    if artifact.kind == "model":
        after: Any = _of_model(artifact, base)
    elif artifact.kind == "peft":
        check(artifact)
        after = merged_changes(artifact, base).tensors
    else:
        after = _of_method(understand(artifact, host), base)
    changed = {}
    for name in after:
        before = np.asarray(base.weights[base.tied.get(name, name)], np.float32)
        found = np.asarray(after[name], np.float32)
        if not np.isfinite(found).all():
            raise EdgeftError(f"{artifact.folder}: {name} holds NaN or infinite numbers.")
        if not np.array_equal(before, found):
            changed[name] = before, found
    for name, source in base.tied.items():
        if source in changed and name not in changed and artifact.kind == "model" and name not in base.weights:
            changed[name] = changed[source]
    return changed


def _of_model(artifact: Artifact, base: Base) -> Weights:
    tuned = Weights(artifact.folder)
    faults = Faults(f"{artifact.folder}: is no tuning of {base.name}")
    for name in sorted(set(tuned) ^ set(base.weights)):
        faults.add(f"{name}: only the {'tuned model' if name in tuned else 'base'} has it")
    for name in sorted(set(tuned) & set(base.weights)):
        if tuned.shape(name) != base.weights.shape(name):
            faults.add(name, declared=list(base.weights.shape(name)), found=list(tuned.shape(name)))
    faults.raise_if_any("Name the base that it was tuned from with --base.")
    return tuned


def _of_method(learned: Learned, base: Base) -> Tensors:
    return {name: learned.method.merge(name, np.asarray(base.weights[name], np.float32), learned.tensors,
                                       learned.options) for name in base.weights}


def _padded(array: Array, shape: tuple[int, ...]) -> Array:
    """Zeros behind a factor whose layer is narrower than the rank."""
    return np.pad(array, [(0, size - have) for size, have in zip(shape, array.shape, strict=True)])


def _logits(artifact: Artifact, base: Base, cases: Sequence[verify.Case]) -> list[Any]:
    """What the original says in torch, in float, to the same tokens."""
    if artifact.kind == "model":
        oracle = Oracle(open_base(str(artifact.folder)).load(), base.eos)
    else:
        oracle = Oracle(base.load(), base.eos)
        oracle.attach(artifact, None, None)
    return [oracle.logits([*case.ids, *case.forced]) for case in cases]
