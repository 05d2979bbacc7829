"""Adapters on the device: lowered slots from a file, packed side by side for a batch."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeft.contract.bundle import Bundle, SlotGroup
from edgeft.contract.data import PromptFormat
from edgeft.contract.errors import Faults, UsageError
from edgeft.contract.tensors import TensorFile

KEPT = 8  # packed combinations that stay ready: switching back costs a rebinding


@dataclass(frozen=True)
class Adapter:
    """One adapter's file, checked against the bundle; tensors stay in the file until they are packed."""

    name: str
    tensors: TensorFile

    @property
    def prompt(self) -> PromptFormat:
        """How its training joined prompt and completion."""
        return PromptFormat(self.tensors.metadata.get("prompt", "raw"),  # type: ignore[arg-type]
                            self.tensors.metadata.get("separator", ""))

    @cached_property
    def rank(self) -> int:
        """Columns that it takes in each module's slot."""
        return max((self.tensors.shape(name)[1] for name in self.tensors if name.endswith(".A")), default=0)


def open_adapter(name: str, path: Path, bundle: Bundle) -> Adapter:
    """Open and check an adapter; EdgeftError lists all that does not fit this bundle."""
    tensors = TensorFile(path)
    faults = Faults(f"{path.name}: cannot be loaded into bundle '{bundle.folder.name}'")
    found = tensors.metadata.get("base_fingerprint", "")
    if found != bundle.fingerprint:
        faults.add("base fingerprint", declared=bundle.fingerprint[:12], found=found[:12] or "none")
    widths = {module: (group.in_features, out) for group in bundle.slots
              for module, out in zip(group.modules, group.out_features, strict=True)}
    for key in tensors:
        if key.startswith("head."):
            continue  # checked by read_head, where the graph's hidden size is known
        module, _, part = key.rpartition(".")
        if module not in widths or part not in ("A", "B"):
            faults.add(f"{key}: the base has no such slot")
            continue
        shape, (in_features, out) = tensors.shape(key), widths[module]
        wanted = [in_features, "rank"] if part == "A" else ["rank", out]
        fits = len(shape) == 2 and (shape[0] == in_features if part == "A" else shape[1] == out)
        other = tensors.shape(f"{module}.B" if part == "A" else f"{module}.A") \
            if f"{module}.{'B' if part == 'A' else 'A'}" in tensors else ()
        if not fits:
            faults.add(key, declared=wanted, found=list(shape))
        elif len(other) != 2 or shape[1 if part == "A" else 0] != other[0 if part == "A" else 1]:
            faults.add(f"{key}: has no partner of the same rank")
        elif not np.isfinite(tensors[key]).all():
            faults.add(f"{key}: holds NaN or infinite numbers")
    if not len(tensors):
        faults.add("it holds no slot: it would change nothing")
    faults.raise_if_any("Train it on this base, or export the bundle again from the base it was trained on.")
    return Adapter(name, tensors)


class Shelf:
    """The loaded adapters of a model; packs what a batch asks for, without touching the session."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.groups = bundle, bundle.slots
        self.loaded: dict[str, Adapter] = {}
        self._packed: OrderedDict[tuple[str, ...], dict[str, ort.OrtValue]] = OrderedDict()

    def load(self, name: str, path: Path | None = None) -> Adapter:
        """Make an adapter ready: one of the bundle's by its name, or any adapter file."""
        if path is None and name in self.loaded:
            return self.loaded[name]
        if path is not None and name in self.loaded:
            raise UsageError(f"There is an adapter {name!r} already; unload it first.")
        self.loaded[name] = open_adapter(name, path or self.bundle.adapter_file(name), self.bundle)
        return self.loaded[name]

    def unload(self, name: str) -> None:
        """Let go of an adapter and of all that was packed with it."""
        if self.loaded.pop(name, None) is None:
            raise UsageError(f"No adapter {name!r} is loaded.")
        for key in [key for key in self._packed if name in key]:
            del self._packed[key]

    def bind(self, rows: Sequence[Mapping[str, float]]) -> dict[str, ort.OrtValue]:
        """Slot inputs for a batch whose row i uses adapters rows[i], name -> scale; empty if none does."""
        for scale in (value for row in rows for value in row.values()):
            if not math.isfinite(scale):
                raise UsageError(f"An adapter's scale must be a finite number, found {scale}.")
        names = tuple(sorted({name for row in rows for name in row}))
        if not names:
            return {}
        adapters = [self.load(name) for name in names]
        if names in self._packed:
            self._packed.move_to_end(names)
        else:
            self._packed[names] = {key: ort.OrtValue.ortvalue_from_numpy(array)
                                   for key, array in pack(self.groups, adapters).items()}
            if len(self._packed) > KEPT:
                self._packed.popitem(last=False)
        return {**self._packed[names], "adapter_gate": ort.OrtValue.ortvalue_from_numpy(gate(adapters, rows))}


def gate(adapters: Sequence[Adapter], rows: Sequence[Mapping[str, float]]) -> np.ndarray[Any, Any]:
    """[rows, 1, R]: each row's scale on the columns of its own adapters, 0 on the others."""
    return np.asarray([[np.concatenate([np.full(adapter.rank, row.get(adapter.name, 0.0), np.float32)
                                        for adapter in adapters])] for row in rows], np.float32)


def pack(groups: Sequence[SlotGroup], adapters: Sequence[Adapter]) -> dict[str, np.ndarray[Any, Any]]:
    """`{group}.A [in, k * R]` and `{group}.B [k * R, out]` with the adapters' columns side by side.

    A module that an adapter leaves alone keeps zeros there, and so does a rank below the adapter's largest.
    """
    total = sum(adapter.rank for adapter in adapters)
    packed = {}
    for group in groups:
        count = len(group.modules)
        a = np.zeros((group.in_features, count * total), np.float32)
        b = np.zeros((count * total, sum(group.out_features)), np.float32)
        out = 0
        for index, (module, width) in enumerate(zip(group.modules, group.out_features, strict=True)):
            column = index * total
            for adapter in adapters:
                if f"{module}.A" in adapter.tensors:
                    rank = adapter.tensors.shape(f"{module}.A")[1]
                    a[:, column : column + rank] = adapter.tensors[f"{module}.A"]
                    b[column : column + rank, out : out + width] = adapter.tensors[f"{module}.B"]
                column += adapter.rank
            out += width
        packed[f"{group.name}.A"], packed[f"{group.name}.B"] = a, b
    return packed
