"""One adapter on the device: lowered slots in a mapped file, checked against the bundle."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.contract.bundle import Bundle
from edgeft.contract.errors import EdgeftError, Faults
from edgeft.contract.prompt import PromptFormat
from edgeft.contract.tensors import TensorFile

PREFIX = re.compile(r"prefix\.(0|[1-9]\d{0,4})\.(key|value)")
Prefix = Mapping[int, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]  # layer -> (k, v) [kv_heads, n, head_dim]
Stamp = tuple[int, int, int, int]  # device, inode, size, time of the last change in ns
FLOATS = ("F32", "F16", "BF16", "F64")
_serials = itertools.count()
_checks = ThreadPoolExecutor(1, "adapter-check")  # hashing leaves the interpreter free to pack meanwhile


@dataclass(frozen=True)
class Adapter:
    """One adapter's file, checked against the bundle; tensors stay in the file until they are packed."""

    name: str
    tensors: TensorFile
    checked: Future[None]  # of every byte; what the tensors hold is used only when it has ended well
    stamp: Stamp | None = None  # of the file when it was opened
    serial: int = field(default_factory=lambda: next(_serials))  # a name may come back with another file

    def altered(self) -> EdgeftError | None:
        """What to say if the file that is open was written to since: what is mapped is no longer what was checked."""
        now = _stamp(self.tensors.path)
        if now is None or self.stamp is None or now[:2] != self.stamp[:2] or now == self.stamp:
            return None  # as it was, or gone, or another file under its name: the one that is open is whole
        return EdgeftError(f"{self.tensors.path.name}: was written to while it was in use. Put a new file beside it "
                           "and rename it over the old one, then unload the adapter and load it again.")

    @property
    def prompt(self) -> PromptFormat:
        """How its training joined prompt and completion."""
        return PromptFormat.from_metadata(self.tensors.metadata)

    @cached_property
    def rank(self) -> int:
        """Columns that it takes in each module's slot."""
        return max((self.tensors.shape(name)[1] for name in self.tensors if name.endswith(".A")), default=0)

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return {name[:-2]: self.tensors.shape(name)[1] for name in self.tensors if name.endswith(".A")}

    def rank_of(self, module: str) -> int:
        """The rank that it has at one module; 0 where it leaves that alone."""
        return self._ranks.get(module, 0)

    @cached_property
    def scaled(self) -> bool:
        """Whether it multiplies layers' results."""
        return any(name.endswith(".scale") for name in self.tensors)

    @cached_property
    def soft(self) -> bool:
        """Whether it is a soft prompt."""
        return any(PREFIX.fullmatch(name) for name in self.tensors)

    @cached_property
    def prefix(self) -> Prefix:
        """What stands before the sequence in each layer's cache; empty for all but soft prompts."""
        layers = sorted(int(name.split(".")[1]) for name in self.tensors if PREFIX.fullmatch(name)
                        and name.endswith("key"))
        return {layer: (self.tensors[f"prefix.{layer}.key"], self.tensors[f"prefix.{layer}.value"]) for layer in layers}

    @property
    def length(self) -> int:
        """Tokens of the context that its soft prompt takes."""
        return length_of(self.prefix)


def length_of(prefix: Prefix) -> int:
    """Rows of the cache that a soft prompt fills."""
    return prefix[0][0].shape[1] if prefix else 0


def open_adapter(name: str, path: Path, bundle: Bundle) -> Adapter:
    """Open an adapter; EdgeftError lists all of its header that does not fit this bundle.

    Its bytes are checked meanwhile: `checked.result()` waits for that and raises an EdgeftError of its own.
    """
    stamp, tensors = _stamp(path), bundle.tensors(path)
    faults = Faults(f"{path.name}: cannot be loaded into bundle '{bundle.folder.name}'")
    found = tensors.metadata.get("base_fingerprint", "")
    if found != bundle.fingerprint:
        faults.add("base fingerprint", declared=bundle.fingerprint[:12], found=found[:12] or "none")
    linears, scales = bundle.module_shapes
    for key in tensors:
        if key.startswith("head."):
            continue  # checked by read_head, where the graph's hidden size is known
        module, _, part = key.rpartition(".")
        if tensors.dtype(key) not in FLOATS:
            faults.add(key, declared=f"one of {', '.join(FLOATS)}", found=tensors.dtype(key))
        if PREFIX.fullmatch(key):
            _check_prefix(key, tensors, bundle, faults)
        elif part == "scale" and module in scales:
            if tensors.shape(key) != (scales[module],):
                faults.add(key, declared=[scales[module]], found=list(tensors.shape(key)))
        elif part in ("A", "B") and module in linears:
            _check_pair(key, tensors, linears[module], faults)
        else:
            faults.add(f"{key}: the bundle has no such slot")
    faults.raise_if_any(_AGAIN)
    return Adapter(name, tensors, _checks.submit(_check_bytes, tensors, bundle), stamp)


def _stamp(path: Path) -> Stamp | None:
    """By what one tells that a file is another, or was written to; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


_AGAIN = "Train it on this base, or export the bundle again from the base it was trained on."


def _check_bytes(tensors: TensorFile, bundle: Bundle) -> None:
    """EdgeftError unless the digest is the recorded one, all numbers are finite, and they change something."""
    faults = Faults(f"{tensors.path.name}: cannot be loaded into bundle '{bundle.folder.name}'")
    declared = bundle.digest_of(tensors.path)
    if declared and (digest := tensors.sha256()) != declared:
        faults.add("sha256", declared=declared[:12], found=digest[:12])
        faults.raise_if_any("Copy the bundle again, or add the adapter again.")
    for key in tensors:
        if not np.isfinite(tensors[key]).all():
            faults.add(f"{key}: holds NaN or infinite numbers")
    if not faults.lines and not any(_acts(key, tensors) for key in tensors):
        faults.add("it would change nothing: it holds no slot, or only zeros and factors of one")
    faults.raise_if_any(_AGAIN)


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
