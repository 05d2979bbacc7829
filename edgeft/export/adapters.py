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
from edgeft.contract.heads import Head
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
        if len(parts) == 1:  # of the whole model, as a soft prompt is: its method's lower() has to use it
            continue
        owner = next((".".join(parts[:size]) for size in range(len(parts) - 1, 0, -1)
                      if ".".join(parts[:size]) in modules), None)
        if owner is None:
            faults.add(f"{name}: the base has no such module")
        else:
            found.add(owner)
    faults.raise_if_any("Name its own base with --base.")
    return found


@dataclass(frozen=True)
class Places:
    """Where a bundle takes adapters: its linear layers, and (kv_heads, head_dim) of each layer's cache."""

    kinds: Sequence[str]
    slots: Sequence[SlotGroup]
    layers: Sequence[tuple[int, int]]
    context: int
    rank: int = 0  # the most that its slots take; 0: any

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Module -> (in, out)."""
        return {module: (slot.in_features, out) for slot in self.slots
                for module, out in zip(slot.modules, slot.out_features, strict=True)}


def lower(learned: Learned, base: GraphBase, places: Places) -> Lowered:
    """Slots of an artifact, every one of which the bundle has, and every trained module among them."""
    trained = check_modules(learned, base.names(), base.linears())
    lowered = _named(learned.artifact, lambda: learned.method.lower(learned.tensors, learned.options, base))
    if lowered.kinds and not lowered.acts:
        raise EdgeftError(f"{learned.artifact.folder}: changes no logit: every low-rank product is 0 and every factor "
                          "1. It was never trained.")
    faults = Faults(f"{learned.artifact.folder}: cannot stand beside the base")
    for kind in lowered.kinds:
        if kind not in places.kinds:
            faults.add(f"slot kind {kind!r}", declared=f"the device takes {', '.join(places.kinds) or 'none'}",
                       found=kind)
    _check_linears(lowered, places.linears, faults)
    _check_prefix(lowered, places, faults)
    _check_rank(lowered, places.rank, faults)
    for module in sorted(trained - lowered.modules - lowered.moved.keys()):
        faults.add(f"{module}: was trained and found no slot; it would be lost")
    if not lowered.kinds:
        faults.add("it lowers to nothing")
    for module, array in [*((module, array) for module, pair in lowered.lowrank.items() for array in pair),
                          *lowered.scale.items(), *((f"layer {layer}", array) for layer, pair in lowered.prefix.items()
                                                    for array in pair)]:
        if not np.isfinite(array).all():
            faults.add(f"{module}: lowers to NaN or infinite numbers")
    faults.raise_if_any("Name its own base with --base; where the method can be merged, --merge needs no slot.")
    return lowered


def _check_rank(lowered: Lowered, most: int, faults: Faults) -> None:
    wanted = max((a.shape[1] for a, _ in lowered.lowrank.values()), default=0)
    if most and wanted > most:
        faults.add("rank of its slots, fixed when the bundle was exported", declared=most, found=wanted)


def _check_linears(lowered: Lowered, widths: Mapping[str, tuple[int, int]], faults: Faults) -> None:
    for module, (a, b) in lowered.lowrank.items():
        if module not in widths:
            faults.add(f"{module}: no linear layer of the graph")
        elif (a.shape[0], b.shape[1]) != widths[module] or a.shape[1] != b.shape[0]:
            faults.add(module, declared=f"[{widths[module][0]}, r] and [r, {widths[module][1]}]",
                       found=f"{list(a.shape)} and {list(b.shape)}")
    for module, scale in lowered.scale.items():
        if module not in widths:
            faults.add(f"{module}: no linear layer of the graph")
        elif scale.shape != (widths[module][1],):
            faults.add(f"{module}, scale", declared=[widths[module][1]], found=list(scale.shape))
    for module, slot in lowered.moved.items():
        if slot not in lowered.modules:
            faults.add(f"{module}: was said to be held by {slot}, which has no slot in use")


def _check_prefix(lowered: Lowered, places: Places, faults: Faults) -> None:
    if not lowered.prefix:
        return
    if sorted(lowered.prefix) != list(range(len(places.layers))):
        faults.add("prefix, layers", declared=len(places.layers), found=len(lowered.prefix))
        return
    for layer, pair in lowered.prefix.items():
        heads, size = places.layers[layer]
        for array in pair:
            if array.shape != (heads, lowered.length, size):
                faults.add(f"prefix, layer {layer}", declared=[heads, lowered.length, size], found=list(array.shape))
    if lowered.length >= places.context:
        faults.add("prefix", declared=f"shorter than the context of {places.context} tokens",
                   found=f"{lowered.length} tokens")


def write_adapter(path: Path, lowered: Lowered, learned: Learned, fingerprint: str, head: Head | None = None) -> None:
    """The adapter's file: its slots under their modules' names, and what it needs to be checked and prompted."""
    prompt = learned.artifact.prompt
    tensors = {}
    for module, (a, b) in sorted(lowered.lowrank.items()):
        tensors[f"{module}.A"], tensors[f"{module}.B"] = a, b
    for module, scale in sorted(lowered.scale.items()):
        tensors[f"{module}.scale"] = scale
    for layer, (key, value) in sorted(lowered.prefix.items()):
        tensors[f"prefix.{layer}.key"], tensors[f"prefix.{layer}.value"] = key, value
    path.parent.mkdir(exist_ok=True)
    tensors |= head.tensors() if head else {}
    write_tensors(path, {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}, {
        **(head.metadata() if head else {}),
        "format": "edgeft-adapter-1", "base_fingerprint": fingerprint, "kind": ",".join(lowered.kinds),
        "rank": str(lowered.rank), "method": learned.method.name, **prompt.to_metadata()})


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
