"""A model's adapters: thousands by name, some open, and what the graphs take of them resident within a budget."""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeft.contract.bundle import Bundle
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.events import event
from edgeft.contract.signature import read_policy

from . import packing
from .adapters import Adapter, Prefix, open_adapter
from .budget import Budget
from .signing import check_adapter

Array = np.ndarray[Any, Any]
Values = dict[str, ort.OrtValue]
Used = Mapping[str, float]  # adapter name -> scale
Key = tuple[tuple[int, float], ...]  # the adapters of one row by serial number, with their scales
OPEN = 256  # adapter files open at once: each holds a file descriptor


@dataclass(frozen=True)
class Slots:
    """What a batch's adapters put into the contract's graph; what is left out keeps the defaults: no change."""

    shared: Mapping[str, Array] = field(default_factory=dict)  # one value for the whole batch
    rows: Mapping[str, Array] = field(default_factory=dict)  # [rows, ...]: a value per row


def as_values(arrays: Mapping[str, Array]) -> Values:
    """Arrays as onnxruntime binds them; made once: there are hundreds, and making one takes longer than binding it."""
    return {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}


class Shelf:
    """Where adapters are found, opened, made resident, and let go."""

    def __init__(self, bundle: Bundle, budget: Budget) -> None:
        self.bundle, self.budget = bundle, budget
        self.groups, self.scales = bundle.slots, bundle.scales
        self._policy = read_policy(bundle.folder)  # the bundle's own adapters were asked for it when they came
        self._paths: dict[str, Path] = {}  # registered beside the bundle's own
        self._open: OrderedDict[str, Adapter] = OrderedDict()
        self._users: Counter[str] = Counter()
        self._lock = threading.RLock()  # requests are made, and adapters unloaded, while a batch runs elsewhere
        self.nothing = as_values(packing.nothing(self.groups))

    @property
    def names(self) -> list[str]:
        """All adapters that can be asked for."""
        return [*self.bundle.adapters, *self._paths]

    @property
    def opened(self) -> Mapping[str, Adapter]:
        """Adapters whose files are open and checked."""
        return self._open

    def register(self, name: str, path: Path) -> None:
        """Offer an adapter file under a new name; it is opened and checked when it is first used."""
        with self._lock:
            if name in self._paths or name in self._open or name in self.bundle.adapters:
                raise UsageError(f"There is an adapter {name!r} already; unload it first.")
            self._paths[name] = path

    def load(self, name: str, path: Path | None = None) -> Adapter:
        """An adapter, opened and checked whole: one of the bundle's by its name, a registered one, or any file."""
        with self._lock:
            if path is not None:
                self.register(name, path)
            try:
                return self._proven(self.open(name))
            except Exception:
                if path is not None:
                    del self._paths[name]
                raise

    def open(self, name: str) -> Adapter:
        """An adapter whose header is checked, and whose bytes still may be under way: for its shapes and names."""
        with self._lock:
            if name in self._open:
                self._open.move_to_end(name)
                return self._open[name]
            path = self._paths.get(name) or self.bundle.adapter_file(name)
            try:
                adapter = open_adapter(name, path, self.bundle)
                if self._policy and name in self._paths:
                    check_adapter(path, self._policy.keys, digest=adapter.tensors.sha256())
            except EdgeftError as error:
                event("adapter_refused", adapter=name, file=str(path), reason=str(error))
                raise
            self._open[name] = adapter
            event("adapter_opened", adapter=name, file=str(path))
            while len(self._open) > OPEN:
                oldest = next((item for item in self._open if not self._users[item] and item != name), None)
                if oldest is None:
                    break
                self._forget(oldest)
            return adapter

    def _proven(self, adapter: Adapter) -> Adapter:
        """The adapter, once its bytes are checked; EdgeftError if they are not what they should be."""
        wrong = adapter.checked.exception()
        if wrong is None:
            return self._unaltered(adapter)
        self._forget(adapter.name)
        if not isinstance(wrong, EdgeftError):
            raise wrong
        event("adapter_refused", adapter=adapter.name, file=str(adapter.tensors.path), reason=str(wrong))
        raise EdgeftError(str(wrong))  # one of its own: the check's would hold the file open, by way of its traceback

    def _unaltered(self, adapter: Adapter) -> Adapter:
        """The adapter; EdgeftError if its file was written to. It stays until it is unloaded: others may run on it."""
        wrong = adapter.altered()
        if wrong is not None:
            event("adapter_refused", adapter=adapter.name, file=str(adapter.tensors.path), reason=str(wrong))
            raise wrong
        return adapter

    def unload(self, name: str) -> None:
        """Let go of an adapter and of all that was made of it; UsageError while a request uses it."""
        with self._lock:
            if self._users[name]:
                raise UsageError(f"Adapter {name!r} is in use by {self._users[name]} running request(s); unload it "
                                 "when they have ended.")
            if self._paths.pop(name, None) is None and name not in self._open:
                raise UsageError(f"No adapter {name!r} is loaded.")
            self._forget(name)

    def _forget(self, name: str) -> None:
        adapter = self._open.pop(name, None)
        if adapter is not None:
            event("adapter_closed", adapter=name)
            serial = adapter.serial
            self.budget.drop(lambda key: isinstance(key, tuple) and any(serial == part for part, _ in key[1]))

    def check(self, rows: Sequence[Used]) -> None:
        """UsageError for scales and mixtures that cannot be."""
        for row in rows:
            for name, scale in row.items():
                if not math.isfinite(scale):
                    raise UsageError(f"An adapter's scale must be a finite number, found {scale}.")
                if self.open(name).soft and scale not in (0, 1):
                    raise UsageError(f"Adapter {name!r} is a soft prompt: it is there or it is not (scale 1 or 0), "
                                     f"found {scale:g}.")
            self.prefix(row)

    def use(self, row: Used) -> None:
        """A running request uses these: they can neither be unloaded nor closed."""
        with self._lock:
            self._users.update(row.keys())

    def release(self, row: Used) -> None:
        """That request has ended."""
        with self._lock:
            self._users.subtract(row.keys())

    def kind(self, row: Used) -> str:
        """What a graph must have for these adapters: "" (nothing), "lowrank" or "scale"."""
        adapters = [self.open(name) for name, scale in row.items() if scale]
        return "scale" if any(item.scaled for item in adapters) else "lowrank" if any(item.rank for item in adapters) \
            else ""

    def key(self, row: Used) -> Key:
        """The adapters of a row and their scales, whatever their order."""
        return tuple(sorted((self.open(name).serial, scale) for name, scale in row.items() if scale))

    def prefix(self, row: Used) -> Prefix:
        """The soft prompt of one row; empty without one."""
        soft = [name for name, scale in row.items() if scale and self.open(name).soft]
        if len(soft) > 1:
            raise UsageError(f"Adapters {' and '.join(map(repr, sorted(soft)))} are soft prompts, and a request can "
                             "have one only: each was trained to stand first.")
        return self.load(soft[0]).prefix if soft else {}

    def ranks(self, row: Used) -> dict[str, int]:
        """The rank that these adapters need in each group's blocks."""
        adapters = [self.open(name) for name, scale in row.items() if scale]
        return {group.name: packing.rank_of(group, adapters) for group in self.groups}

    def matrices(self, row: Used) -> tuple[Any, Values]:
        """(key, one row's matrices), resident from now on as long as the budget allows."""
        key = ("rows", self.key(row))
        made = self.budget.get(key)
        if made is None:
            mix = [(self.open(name), scale) for name, scale in sorted(row.items()) if scale]
            made = self.budget.make(key, packing.size(self.groups, 1, self.ranks(row)), lambda: self._packed(mix),
                                    f"Adapter {' + '.join(sorted(row))}")
        return key, made

    def _packed(self, mix: packing.Mix) -> Values:
        for adapter, _ in mix:
            self._unaltered(adapter)
        made = packing.own_matrices(self.groups, mix)
        for adapter, _ in mix:
            self._proven(adapter).tensors.release()  # it was copied, and need not stay in memory twice
        return as_values(made)

    def slots(self, rows: Sequence[Used]) -> Slots:
        """For the contract's graph: all adapters of the batch side by side, and each row's gate and factors."""
        adapters = [self.load(name) for name in sorted({name for row in rows for name in row})]
        ranked, scaled = [item for item in adapters if item.rank], [item for item in adapters if item.scaled]
        return Slots(self._side_by_side(ranked) if ranked else {},
                     {**({"adapter_gate": packing.gate(ranked, rows)} if ranked else {}),
                      **(packing.scales(self.scales, scaled, rows) if scaled else {})})

    def _side_by_side(self, adapters: Sequence[Adapter]) -> dict[str, Array]:
        key = ("gate", tuple((adapter.serial, 1.0) for adapter in adapters))
        total = sum(adapter.rank for adapter in adapters)
        size = sum(4 * len(group.modules) * total * (group.in_features + sum(group.out_features))
                   for group in self.groups)
        made: dict[str, Array] = self.budget.make(
            key, size, lambda: packing.side_by_side(self.groups, adapters),
            f"Adapter {' + '.join(adapter.name for adapter in adapters)}")
        return made
