"""Adapters on the device: lowered slots from a file, packed side by side for a batch."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeft.contract.bundle import Bundle, SlotGroup
from edgeft.contract.errors import Faults, UsageError
from edgeft.contract.prompt import PromptFormat
from edgeft.contract.tensors import TensorFile

from .session import Prefix, Slots

PREFIX = re.compile(r"prefix\.(0|[1-9]\d{0,4})\.(key|value)")
KEPT = 8  # packed combinations that stay ready: switching back costs a rebinding


@dataclass(frozen=True)
class Adapter:
    """One adapter's file, checked against the bundle; tensors stay in the file until they are packed."""

    name: str
    tensors: TensorFile

    @property
    def prompt(self) -> PromptFormat:
        """How its training joined prompt and completion."""
        return PromptFormat.from_metadata(self.tensors.metadata)

    @cached_property
    def rank(self) -> int:
        """Columns that it takes in each module's slot."""
        return max((self.tensors.shape(name)[1] for name in self.tensors if name.endswith(".A")), default=0)

    @cached_property
    def scaled(self) -> bool:
        """Whether it multiplies layers' results."""
        return any(name.endswith(".scale") for name in self.tensors)

    @cached_property
    def prefix(self) -> Prefix:
        """What stands before the sequence in each layer's cache; empty for all but soft prompts."""
        layers = sorted(int(name.split(".")[1]) for name in self.tensors if PREFIX.fullmatch(name)
                        and name.endswith("key"))
        return {layer: (self.tensors[f"prefix.{layer}.key"], self.tensors[f"prefix.{layer}.value"]) for layer in layers}

    @property
    def length(self) -> int:
        """Tokens of the context that its soft prompt takes."""
        return self.prefix[0][0].shape[1] if self.prefix else 0


def open_adapter(name: str, path: Path, bundle: Bundle) -> Adapter:
    """Open and check an adapter; EdgeftError lists all that does not fit this bundle."""
    tensors = TensorFile(path)
    faults = Faults(f"{path.name}: cannot be loaded into bundle '{bundle.folder.name}'")
    found = tensors.metadata.get("base_fingerprint", "")
    if found != bundle.fingerprint:
        faults.add("base fingerprint", declared=bundle.fingerprint[:12], found=found[:12] or "none")
    linears = {module: (group.in_features, out) for group in bundle.slots
               for module, out in zip(group.modules, group.out_features, strict=True)}
    scales = {module: out for group in bundle.scales
              for module, out in zip(group.modules, group.out_features, strict=True)}
    for key in tensors:
        if key.startswith("head."):
            continue  # checked by read_head, where the graph's hidden size is known
        module, _, part = key.rpartition(".")
        if PREFIX.fullmatch(key):
            _check_prefix(key, tensors, bundle, faults)
        elif part == "scale" and module in scales:
            if tensors.shape(key) != (scales[module],):
                faults.add(key, declared=[scales[module]], found=list(tensors.shape(key)))
        elif part in ("A", "B") and module in linears:
            _check_pair(key, tensors, linears[module], faults)
        else:
            faults.add(f"{key}: the bundle has no such slot")
    for key in () if faults.lines else tensors:
        if not np.isfinite(tensors[key]).all():
            faults.add(f"{key}: holds NaN or infinite numbers")
    if not faults.lines and not any(_acts(key, tensors) for key in tensors):
        faults.add("it would change nothing: it holds no slot, or only zeros and factors of one")
    faults.raise_if_any("Train it on this base, or export the bundle again from the base it was trained on.")
    return Adapter(name, tensors)


def _acts(key: str, tensors: TensorFile) -> bool:
    """Whether a tensor, with its partner if it is half of a pair, changes anything."""
    module, _, part = key.rpartition(".")
    if part in ("A", "B"):
        return bool(tensors[f"{module}.A"].any() and tensors[f"{module}.B"].any())
    return bool((tensors[key] != 1).any()) if part == "scale" else True


def _check_pair(key: str, tensors: TensorFile, widths: tuple[int, int], faults: Faults) -> None:
    """One half of a low-rank pair: its shape, and its other half."""
    module, _, part = key.rpartition(".")
    first, shape, other = part == "A", tensors.shape(key), f"{module}.{'B' if part == 'A' else 'A'}"
    partner = tensors.shape(other) if other in tensors else ()
    if len(shape) != 2 or shape[0 if first else 1] != widths[0 if first else 1]:
        faults.add(key, declared=[widths[0], "rank"] if first else ["rank", widths[1]], found=list(shape))
    elif len(partner) != 2 or shape[1 if first else 0] != partner[0 if first else 1]:
        faults.add(f"{key}: has no partner of the same rank")


def _check_prefix(key: str, tensors: TensorFile, bundle: Bundle, faults: Faults) -> None:
    """Keys or values of one layer: every layer must have both, all of one length, below the context."""
    layer, layers, shape = int(key.split(".")[1]), bundle.prefix_layers, tensors.shape(key)
    whole = {f"prefix.{index}.{part}" for index in range(len(layers)) for part in ("key", "value")}
    if layer >= len(layers):
        faults.add(f"{key}: the bundle has no such slot")
    elif not whole <= set(tensors):
        faults.add(f"{key}: other layers' keys or values are missing")
    elif len(shape) != 3 or (shape[0], shape[2]) != layers[layer] or shape[1] != tensors.shape("prefix.0.key")[1] \
            or shape[1] < 1:
        faults.add(key, declared=[layers[layer][0], "length", layers[layer][1]], found=list(shape))
    elif shape[1] >= bundle.context:
        faults.add(key, declared=f"shorter than the context of {bundle.context} tokens", found=f"{shape[1]} tokens")


class Shelf:
    """The loaded adapters of a model; packs what a batch asks for, without touching the session."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.groups, self.scales = bundle, bundle.slots, bundle.scales
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

    def bind(self, rows: Sequence[Mapping[str, float]]) -> Slots:
        """Slots for a batch whose row i uses adapters rows[i], name -> scale."""
        for name, scale in ((name, value) for row in rows for name, value in row.items()):
            if not math.isfinite(scale):
                raise UsageError(f"An adapter's scale must be a finite number, found {scale}.")
            if self.load(name).prefix and scale not in (0, 1):
                raise UsageError(f"Adapter {name!r} is a soft prompt: it is there or it is not (scale 1 or 0), found "
                                 f"{scale:g}.")
        names = tuple(sorted({name for row in rows for name in row}))
        adapters = [self.load(name) for name in names]
        prefixes = [self._prefix(row) for row in rows]
        ranked, scaled = [item for item in adapters if item.rank], [item for item in adapters if item.scaled]
        return Slots(self._pack(ranked) if ranked else {},
                     {**({"adapter_gate": gate(ranked, rows)} if ranked else {}),
                      **(scales(self.scales, scaled, rows) if scaled else {})},
                     prefixes if any(prefixes) else ())

    def _prefix(self, row: Mapping[str, float]) -> Prefix:
        """The soft prompt of one row."""
        soft = [name for name, scale in row.items() if scale and self.load(name).prefix]
        if len(soft) > 1:
            raise UsageError(f"Adapters {' and '.join(map(repr, sorted(soft)))} are soft prompts, and a request can "
                             "have one only: each was trained to stand first.")
        return self.load(soft[0]).prefix if soft else {}

    def _pack(self, adapters: Sequence[Adapter]) -> dict[str, ort.OrtValue]:
        """A and B of these adapters side by side, kept for the next request."""
        names = tuple(adapter.name for adapter in adapters)
        if names not in self._packed:
            self._packed[names] = {key: ort.OrtValue.ortvalue_from_numpy(array)
                                   for key, array in pack(self.groups, adapters).items()}
            if len(self._packed) > KEPT:
                self._packed.popitem(last=False)
        self._packed.move_to_end(names)
        return self._packed[names]


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


def scales(groups: Sequence[SlotGroup], adapters: Sequence[Adapter],
           rows: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray[Any, Any]]:
    """`{group}.scale [rows, 1, out]`: the product of what a row's adapters multiply by, 1 where none does.

    An adapter at scale c multiplies by 1 + c (s - 1): at 1 by s itself, at 0 by nothing.
    """
    made = {}
    for group in groups:
        found = np.ones((len(rows), 1, sum(group.out_features)), np.float32)
        out = 0
        for module, width in zip(group.modules, group.out_features, strict=True):
            for adapter in adapters:
                if f"{module}.scale" in adapter.tensors:
                    s = adapter.tensors[f"{module}.scale"]
                    for index, row in enumerate(rows):
                        found[index, 0, out : out + width] *= 1 + row.get(adapter.name, 0.0) * (s - 1)
            out += width
        made[f"{group.name}.scale"] = found
    return made
