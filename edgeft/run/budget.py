"""A bound on resident memory: what can be made again is thrown away, least recently used first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from edgeft.contract.errors import EdgeftError
from edgeft.contract.events import event

MIB = 1 << 20


class Budget:
    """Bytes for adapters' matrices and kept prefixes, beside what must be there: weights, runtime, running caches."""

    def __init__(self, limit: int, fixed: int) -> None:
        self.limit, self.fixed = limit, fixed
        self.reserved = 0  # running caches
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._pins: dict[Hashable, int] = {}
        self._bytes = 0
        self._lock = threading.RLock()  # requests are made, and adapters unloaded, while a batch runs elsewhere

    @property
    def held(self) -> int:
        """Bytes of all that is kept."""
        return self._bytes

    @property
    def room(self) -> int:
        """Bytes that are free, or would be if all that nobody uses were thrown away."""
        with self._lock:
            pinned = sum(size for key, (_, size) in self._kept.items() if self._pins.get(key))
            return self.limit - self.fixed - self.reserved - pinned

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable) -> Any | None:
        """What is kept under this key, now the most recently used."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def make(self, key: Hashable, size: int, make: Callable[[], Any], who: str) -> Any:
        """What is kept under this key, made if need be; EdgeftError if there is no room for `size` bytes."""
        with self._lock:
            if key not in self._kept:
                self.need(size, who)
                self._kept[key] = (make(), size)
                self._bytes += size
            return self.get(key)

    def need(self, size: int, who: str) -> None:
        """Make room for `size` more bytes; EdgeftError if they alone are too many."""
        with self._lock:
            if size > self.room:
                least = -(-(self.limit - self.room + size) // MIB)
                raise EdgeftError(
                    f"{who} takes {size / MIB:,.1f} MiB, and of the {self.limit / MIB:,.0f} MiB that are allowed "
                    f"{max(self.room, 0) / MIB:,.1f} are left: weights and runtime take {self.fixed / MIB:,.0f}, "
                    f"running requests {(self.limit - self.fixed - self.room) / MIB:,.1f}. Give it --memory {least} or "
                    "more, or ask for less at once.")
            self._shrink(self.limit - self.fixed - self.reserved - size)

    def reserve(self, change: int, who: str) -> None:
        """Take bytes for running caches, or give them back with a negative number."""
        with self._lock:
            if change > 0:
                self.need(change, who)
            self.reserved += change

    def pin(self, key: Hashable) -> None:
        """Keep this while it is in use."""
        with self._lock:
            self._pins[key] = self._pins.get(key, 0) + 1

    def unpin(self, key: Hashable) -> None:
        """It is no longer in use there."""
        with self._lock:
            self._pins[key] -= 1
            if not self._pins[key]:
                del self._pins[key]

    def drop(self, wanted: Callable[[Hashable], bool]) -> None:
        """Throw away all whose key is wanted."""
        with self._lock:
            for key in [key for key in self._kept if wanted(key)]:
                self._bytes -= self._kept.pop(key)[1]

    def _shrink(self, most: int) -> None:
        for key in list(self._kept):
            if self._bytes <= most:
                return
            if not self._pins.get(key):
                size = self._kept.pop(key)[1]
                self._bytes -= size
                event("eviction", what=str(key[0]) if isinstance(key, tuple) else str(key), mib=round(size / MIB, 3))
