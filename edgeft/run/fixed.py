"""The rows of a batch on graphs of fixed shapes: a row a pass, prompts in padded chunks, the cache in fixed buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeft.contract.bundle import STATIC_DECODE, STATIC_PREFILL
from edgeft.contract.errors import EdgeftError

from . import packing
from .adapters import length_of
from .growing import GrowingLanes
from .session import Graphs
from .shelf import Shelf, Used

Array = np.ndarray[Any, Any]


class FixedLanes(GrowingLanes):
    """As `GrowingLanes`; each row has buffers of the whole context, and what is not filled is masked."""

    def __init__(self, graphs: Graphs, shelf: Shelf, capacity: int, rows: int = 1) -> None:
        super().__init__(graphs, shelf, capacity, rows)
        fixed = graphs.static
        self.cache, self.chunk, self.rank = int(fixed["cache"]), int(fixed["chunk"]), int(fixed["rank"])
        self.buffers: list[dict[str, Array]] = []
        self._slots: list[dict[str, Array]] = []

    @property
    def pads(self) -> bool:
        """Whether prompts of different lengths may go in together: rows have nothing in common here."""
        return True

    def join(self, used: Used, capacity: int = 0) -> int:
        """One more row, its soft prompt in place and its adapters padded to the slots' rank."""
        slots = self._padded(used)
        row = super().join(used, capacity)
        prefix = self.shelf.prefix(used)
        made = {f"{layer}.{part}": np.zeros((1, heads, self.cache, size), np.float32)
                for layer, (heads, size) in enumerate(self.graphs.layers) for part in ("key", "value")}
        for layer, parts in prefix.items():
            for part, array in zip(("key", "value"), parts, strict=True):
                made[f"{layer}.{part}"][0, :, : length_of(prefix)] = array
        self.buffers.append(made)
        self._slots.append(slots)
        return row

    def _padded(self, used: Used) -> dict[str, Array]:
        """What goes into the slots: a rank that no adapter fills holds zeros."""
        if not self.rank:
            return {}
        adapters = [adapter for name in sorted(used) if (adapter := self.shelf.load(name)).rank]
        wanted = sum(adapter.rank for adapter in adapters)
        if wanted > self.rank:
            raise EdgeftError(f"{self.shelf.bundle.folder}: its graphs have fixed slots\n  rank  declared {self.rank}  "
                              f"found {wanted} ({' + '.join(adapter.name for adapter in adapters)})\n"
                              "Use fewer adapters at once, or export it for a device file with a larger [graph] rank.")
        gate = np.zeros((1, 1, self.rank), np.float32)
        if adapters:
            gate[:, :, :wanted] = packing.gate(adapters, [used])
        return {"adapter_gate": gate, **packing.side_by_side(self.shelf.groups, adapters, self.rank)}

    def leave(self, row: int) -> None:
        """Take a row out; the last one moves into its place."""
        for held in (self.buffers, self._slots):
            held[row] = held[-1]
            held.pop()
        super().leave(row)

    def feed(self, row: int, ids: Sequence[int], *, keep: int = 1) -> Array:
        """One row takes tokens in; logits of the last `keep`, or with 0 of all: [kept, vocabulary].

        A chunk answers for its last token alone, so those asked for beyond that go in one by one.
        """
        alone = len(ids) if not keep or keep >= len(ids) else keep - 1
        first = len(ids) - alone
        parts = [self._take(row, ids[start : min(start + self.chunk, first)], STATIC_PREFILL)
                 for start in range(0, first, self.chunk)]
        parts += [self._take(row, [token], STATIC_DECODE) for token in ids[first:]]
        return np.concatenate(parts if not keep else parts[-keep:])

    def step(self, tokens: Sequence[int], rows: int | None = None) -> Array:
        """Every row takes one token, one row after the other; logits [rows, vocabulary]."""
        return np.concatenate([self._take(row, [token], STATIC_DECODE) for row, token in enumerate(tokens)])

    def forward(self, ids: Array) -> Array:
        """All rows take ids [rows, seq] in; logits of every position."""
        return np.stack([self.feed(row, part.tolist(), keep=0) for row, part in enumerate(ids)])

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Array:
        """Every row takes its prompt in; logits [rows, vocabulary] after its last token."""
        return np.concatenate([self.feed(row, prompt) for row, prompt in enumerate(prompts)])

    def keys_values(self, row: int) -> dict[str, Array]:
        """What a row holds, by the names of its buffers: [heads, tokens, size] each."""
        return {name: array[0, :, : self.lengths[row]] for name, array in self.buffers[row].items()}

    def _take(self, row: int, ids: Sequence[int], file: str) -> Array:
        """One pass of one row; logits [1, vocabulary] of the last token."""
        count, held = len(ids), int(self.lengths[row])
        if held + count > self.capacity:
            raise EdgeftError(f"The cache holds {self.capacity} tokens, and {held + count} are wanted.")
        width = 1 if file == STATIC_DECODE else self.chunk
        tokens, mask = np.zeros((1, width), np.int64), np.zeros((1, self.cache + width), np.int64)
        tokens[0, width - count :] = ids
        mask[0, :held], mask[0, self.cache + width - count :] = 1, 1
        feeds = {"input_ids": tokens, "attention_mask": mask, **self._slots[row],
                 **{f"past_key_values.{name}": array for name, array in self.buffers[row].items()}}
        names = list(self.buffers[row])
        logits, *fresh = self.graphs.get(file).ort.run(["logits", *(f"present.{name}" for name in names)], feeds)
        for name, array in zip(names, fresh, strict=True):
            self.buffers[row][name][:, :, held : held + count] = array[:, :, width - count :]
        self.lengths[row] = held + count
        found: Array = logits[:, -1]
        return found
