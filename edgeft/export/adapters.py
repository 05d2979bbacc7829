"""Lower an artifact to slots, prove that each of its modules found one, and write the adapter's file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeft.contract import CannotLower, Lowered, Method
from edgeft.contract.artifact import Artifact
from edgeft.contract.bundle import SlotGroup
from edgeft.contract.errors import EdgeftError, Faults
from edgeft.contract.slots import Tensors
from edgeft.contract.tensors import write_tensors
from edgeft.options import resolve

from .weights import GraphBase

if TYPE_CHECKING:
    from edgeft.plugins import Host


@dataclass(frozen=True)
class Learned:
    """An artifact with the method that understands it."""

    artifact: Artifact
    method: Method[Any]
    options: Any
    tensors: Tensors


def understand(artifact: Artifact, host: Host) -> Learned:
    """Find the method of an artifact and read its options and tensors; CannotLower if no plugin can."""
    if artifact.kind == "peft":
        method = host.method_for_peft(artifact.peft_type)
        if method is None:
            raise CannotLower(f"{artifact.folder}: no plugin reads PEFT type {artifact.peft_type or 'missing'!r}")
        options = _named(artifact, lambda: method.read_peft(artifact.peft_config))
    else:
        method = host.method(artifact.method)
        options = resolve(method.Options, artifact.record.get("options", {}), who=str(artifact.folder))
    return Learned(artifact, method, options, finite_tensors(artifact))


def finite_tensors(artifact: Artifact) -> Tensors:
    """What a folder holds; EdgeftError for NaN, infinite numbers or nothing at all."""
    tensors = artifact.learned()
    faults = Faults(f"{artifact.folder}: cannot be used")
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            faults.add(f"{name}: holds NaN or infinite numbers")
    if not tensors:
        faults.add("it holds no tensors")
    faults.raise_if_any("Train it again with a lower learning rate.")
    return tensors


def _named(artifact: Artifact, call: Any) -> Any:
    """Put the folder's name before what a method refuses."""
    try:
        return call()
    except CannotLower as error:
        raise CannotLower(f"{artifact.folder}: {error.reason}", error.way_out) from None


def check_modules(learned: Learned, names: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The base modules that were trained; EdgeftError if a tensor belongs to no module of this base."""
    modules = {name.rpartition(".")[0] for name in names} | set(shapes)
    faults = Faults(f"{learned.artifact.folder}: does not belong to this base")
    found = set()
    for name in learned.tensors:
        parts = name.split(".")
        owner = next((".".join(parts[:size]) for size in range(len(parts) - 1, 0, -1)
                      if ".".join(parts[:size]) in modules), None)
        if owner is None:
            faults.add(f"{name}: the base has no such module")
        else:
            found.add(owner)
    faults.raise_if_any("Name its own base with --base.")
    return found


def lower(learned: Learned, base: GraphBase, slots: Sequence[SlotGroup], kinds: Sequence[str]) -> Lowered:
    """Slots of an artifact, every one of which the graph has, and every trained module among them."""
    trained = check_modules(learned, base.names(), base.linears())
    lowered = _named(learned.artifact, lambda: learned.method.lower(learned.tensors, learned.options, base))
    faults = Faults(f"{learned.artifact.folder}: cannot stand beside the base")
    for kind in lowered.kinds:
        if kind not in kinds:
            faults.add(f"slot kind {kind!r}", declared=f"the bundle has {', '.join(kinds) or 'none'}", found=kind)
    widths = {module: (slot.in_features, out) for slot in slots
              for module, out in zip(slot.modules, slot.out_features, strict=True)}
    for module, (a, b) in lowered.lowrank.items():
        if module not in widths:
            faults.add(f"{module}: no linear layer of the graph")
        elif (a.shape[0], b.shape[1]) != widths[module] or a.shape[1] != b.shape[0]:
            faults.add(module, declared=f"[{widths[module][0]}, r] and [r, {widths[module][1]}]",
                       found=f"{list(a.shape)} and {list(b.shape)}")
    for module in sorted(trained - lowered.modules):
        faults.add(f"{module}: was trained and found no slot; it would be lost")
    if not lowered.kinds:
        faults.add("it lowers to nothing")
    faults.raise_if_any("Export it with --merge, or name its own base with --base.")
    return lowered


def write_adapter(path: Path, lowered: Lowered, learned: Learned, fingerprint: str) -> None:
    """The adapter's file: A and B per module, and what it needs to be checked and prompted."""
    prompt = learned.artifact.prompt
    tensors = {}
    for module, (a, b) in sorted(lowered.lowrank.items()):
        tensors[f"{module}.A"] = np.ascontiguousarray(a, np.float32)
        tensors[f"{module}.B"] = np.ascontiguousarray(b, np.float32)
    path.parent.mkdir(exist_ok=True)
    write_tensors(path, tensors, {
        "format": "edgeft-adapter-1", "base_fingerprint": fingerprint, "kind": ",".join(lowered.kinds),
        "rank": str(lowered.rank), "method": learned.method.name, "prompt": prompt.kind,
        "separator": prompt.separator})


def merge_weight(learned: Learned, name: str, weight: Any) -> Any:
    """One base weight with its change folded in; shapes that do not fit are the adapter's fault."""
    try:
        merged = _named(learned.artifact, lambda: learned.method.merge(name, weight, learned.tensors, learned.options))
    except ValueError as error:
        raise EdgeftError(f"{learned.artifact.folder}: does not fit {name} {list(weight.shape)} of this base "
                          f"({error}). Name its own base with --base.") from None
    if merged.shape != weight.shape:
        raise EdgeftError(f"{learned.artifact.folder}: {name} declared {list(weight.shape)} found "
                          f"{list(merged.shape)}. Name its own base with --base.")
    return np.asarray(merged, np.float32)
