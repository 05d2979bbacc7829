"""Keys and values of prompts and answers, kept for requests that begin alike: a chat's turns, a system prompt."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .budget import Budget
from .lanes import Lanes

LEAST = 16  # tokens; below, copying saves nothing worth it


class Prefixes:
    """What is kept, by adapters with their scales and by tokens, the least recently used thrown away first."""

    def __init__(self, budget: Budget, most: int) -> None:
        self.budget, self.most = budget, most  # bytes
        self._tokens: dict[Any, tuple[np.ndarray[Any, Any], int]] = {}
        self._count = itertools.count()

    def restore(self, lanes: Lanes, row: int, key: Any, ids: Sequence[int]) -> int:
        """Start a row with the longest kept beginning of `ids`; how many tokens need no pass."""
        wanted, best, longest = np.asarray(ids[:-1]), None, LEAST - 1
        for name in [name for name in self._tokens if name[1] == key]:
            tokens = self._tokens[name][0]
            size = min(len(tokens), len(wanted))
            differ = np.flatnonzero(tokens[:size] != wanted[:size])
            common = int(differ[0]) if len(differ) else size
            if common > longest and self._get(name) is not None:
                best, longest = name, common
        if best is None:
            return 0
        lanes.copy_in(row, self._get(best), int(lanes.lengths[row]) + longest)
        return longest

    def keep(self, lanes: Lanes, row: int, key: Any, ids: Sequence[int]) -> None:
        """Keep what a row holds of `ids`, in place of what was kept of their beginning."""
        tokens, size = np.asarray(ids), lanes.row_bytes(int(lanes.lengths[row]))
        self._tokens = {name: held for name, held in self._tokens.items() if name in self.budget}  # an adapter may go
        if len(tokens) < LEAST or size > min(self.most, self.budget.room):
            return
        for name, (other, _) in list(self._tokens.items()):
            if name[1] == key and len(other) <= len(tokens) and (tokens[: len(other)] == other).all():
                self._drop(name)
        while self._tokens and sum(held for _, held in self._tokens.values()) + size > self.most:
            self._drop(next(iter(self._tokens)))
        name = ("prefix", key, next(self._count))
        self.budget.make(name, size, lambda: lanes.copy_out(row), "A kept prefix")
        self._tokens[name] = (tokens, size)

    def _get(self, name: Any) -> Any:
        kept = self.budget.get(name)
        if kept is None:
            self._tokens.pop(name, None)
        else:
            self._tokens[name] = self._tokens.pop(name)  # now the most recently used
        return kept

    def _drop(self, name: Any) -> None:
        self._tokens.pop(name, None)
        self.budget.drop(lambda key: key == name)
