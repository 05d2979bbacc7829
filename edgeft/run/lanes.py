"""The rows of a running batch: their keys and values, their adapters' matrices, and the bindings over both.

A row joins, takes tokens in (alone any number of them, or one together with all others), can be wound back, and
leaves; the last row then moves into its place. Nothing is allocated or bound anew from one token to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeft.contract.errors import EdgeftError

from . import packing
from .adapters import length_of
from .binding import Binding
from .session import ROWS, Graphs, Session, defaults
from .shelf import Shelf, Used, Values

Array = np.ndarray[Any, Any]
CHUNK = 128  # tokens of a prompt in one pass: more are hardly faster, and take more memory
SCORES = 16 << 20  # bytes that the attention scores of a chunk may take


class Lanes:
    """Rows over one buffer per layer, past and present at once: nothing is copied per token (GroupQueryAttention)."""

    joins = True  # rows may come and go while others run

    def __init__(self, graphs: Graphs, shelf: Shelf, capacity: int, rows: int = 1) -> None:
        if capacity > shelf.bundle.context:
            raise EdgeftError(f"{capacity} tokens are wanted and the bundle's context is {shelf.bundle.context}.")
        self.graphs, self.shelf = graphs, shelf
        self.used: list[Used] = []
        self._kinds: list[str] = []  # of each row's adapters, and their key
        self._keys: list[Any] = []
        self._about: tuple[list[Any], ...] = (self.used, self._kinds, self._keys)
        self.lengths = np.zeros(0, np.int64)  # tokens held per row, soft prompts included
        self.capacity = self.most = 0
        self.buffers: dict[str, Array] = {}  # "0.key", "0.value", "1.key" and so on
        self._mask = np.zeros((0, 0), np.int64)
        self._bindings: dict[tuple[str, int, int], Binding] = {}
        self._matrices: packing.RowMatrices | None = None
        self._matrices_size = 0
        self._pinned: Any = None  # in the budget: the one adapter mix whose matrices bindings hold themselves
        self._grow(rows, capacity)

    @property
    def rows(self) -> int:
        """How many rows are running."""
        return len(self.used)

    def key(self, row: int) -> Any:
        """Which adapters a row has, with their scales."""
        return self._keys[row]

    def row_bytes(self, capacity: int) -> int:
        """What so many tokens of one row take."""
        return sum(2 * 4 * heads * size * capacity for heads, size in self.graphs.layers)

    def _grow(self, rows: int, capacity: int) -> None:
        """Room for so many rows of so many tokens; what the rows hold is kept."""
        rows, capacity = max(rows, self.most), max(capacity, self.capacity)
        if (rows, capacity) == (self.most, self.capacity):
            return
        change = rows * self.row_bytes(capacity) - self.most * self.row_bytes(self.capacity)
        self._unpin()
        self._bindings.clear()
        self.shelf.budget.reserve(change, f"A cache for {rows} request(s) of {capacity} tokens")
        for layer, (heads, size) in enumerate(self.graphs.layers):
            for part in ("key", "value"):
                fresh = np.zeros((rows, heads, capacity, size), np.float32)
                old = self.buffers.get(f"{layer}.{part}")
                if old is not None and self.rows:
                    longest = int(self.lengths.max())
                    fresh[: self.rows, :, :longest] = old[: self.rows, :, :longest]
                self.buffers[f"{layer}.{part}"] = fresh
        mask = np.zeros((rows, capacity), np.int64)
        mask[: self.rows, : self.capacity] = self._mask[: self.rows]
        self._mask, self.most, self.capacity = mask, rows, capacity

    def close(self) -> None:
        """Give the memory back."""
        while self.used:
            self.leave(len(self.used) - 1)
        self._unpin()
        self.shelf.budget.reserve(-self.most * self.row_bytes(self.capacity) - self._matrices_size, "")
        self.most = self._matrices_size = 0
        self._matrices = None
        self._bindings.clear()
        self.buffers.clear()

    def join(self, used: Used, capacity: int = 0) -> int:
        """One more row with these adapters, its soft prompt in place; returns its index."""
        prefix, kind, mix = self.shelf.prefix(used), self.shelf.kind(used), self.shelf.key(used)
        length = length_of(prefix)
        if length >= max(capacity, self.capacity):
            raise EdgeftError(f"The soft prompt takes {length} tokens, and the cache holds "
                              f"{max(capacity, self.capacity)}: no room is left for a prompt.")
        row = self.rows
        self._grow(row + 1 if row < self.most else max(row + 1, 2 * self.most if row else 1), capacity)
        for layer, (key, value) in prefix.items():
            self.buffers[f"{layer}.key"][row, :, :length] = key
            self.buffers[f"{layer}.value"][row, :, :length] = value
        self._mask[row, :length], self._mask[row, length:] = 1, 0
        self.used.append(used)
        self._kinds.append(kind)
        self._keys.append(mix)
        self.lengths = np.append(self.lengths, length)
        self.shelf.use(used)
        return row

    def leave(self, row: int) -> None:
        """Take a row out; the last one moves into its place."""
        last = self.rows - 1
        self.shelf.release(self.used[row])
        if row != last:
            length = int(self.lengths[last])
            for buffer in self.buffers.values():
                buffer[row, :, :length] = buffer[last, :, :length]
            self._mask[row], self.lengths[row] = self._mask[last], self.lengths[last]
        for held in self._about:
            held[row] = held[last]
            held.pop()
        self.lengths = self.lengths[:last].copy()
        if self._pinned is not None and self._pinned[1] not in self._keys:
            self._unpin()  # the bindings keep it for the next request, but it may be thrown away

    def swap(self, one: int, other: int) -> None:
        """Two rows change places."""
        for buffer in self.buffers.values():
            buffer[[one, other]] = buffer[[other, one]]
        self._mask[[one, other]] = self._mask[[other, one]]
        self.lengths[[one, other]] = self.lengths[[other, one]]
        for held in self._about:
            held[one], held[other] = held[other], held[one]

    def rewind(self, row: int, length: int) -> None:
        """Forget a row's tokens from `length` on."""
        self._mask[row, length : self.lengths[row]] = 0
        self.lengths[row] = length

    def keys_values(self, row: int) -> dict[str, Array]:
        """What a row holds, by the names of the buffers: [heads, tokens, size] each."""
        return {name: buffer[row, :, : self.lengths[row]] for name, buffer in self.buffers.items()}

    def copy_out(self, row: int) -> dict[str, Array]:
        """A row's keys and values in memory of their own."""
        held = self.keys_values(row)
        made = packing.allocate({name: array.shape for name, array in held.items()})
        for name, array in held.items():
            made[name][...] = array
        return made

    def copy_in(self, row: int, kept: Mapping[str, Array], length: int) -> None:
        """Start a row with the first `length` of what `copy_out` gave."""
        for name, buffer in self.buffers.items():
            buffer[row, :, :length] = kept[name][:, :length]
        self._mask[row, :length] = 1
        self.lengths[row] = length

    def feed(self, row: int, ids: Sequence[int], *, keep: int = 1) -> Array:
        """One row takes tokens in; logits of the last `keep`, or with 0 of all: [kept, vocabulary]."""
        chunk = self.chunk
        if len(ids) <= chunk:
            return self._pass(row, row + 1, np.asarray([ids], np.int64), keep)[0]
        parts = [np.array(self._pass(row, row + 1, np.asarray([ids[start : start + chunk]], np.int64), keep)[0])
                 for start in range(0, len(ids), chunk)]
        return np.concatenate(parts)[-keep:]  # with 0 all of them

    @property
    def chunk(self) -> int:
        """Tokens of one pass, so that the scores of its attention stay small."""
        heads = max((heads for heads, _ in self.graphs.layers), default=1) * 4  # query heads a key head, at a guess
        return min(CHUNK, max(16, SCORES // (4 * heads * self.capacity)))

    def step(self, tokens: Sequence[int], rows: int | None = None) -> Array:
        """The first rows take one token each; logits [rows, vocabulary] in a buffer that the next step overwrites."""
        return self._pass(0, self.rows if rows is None else rows, np.asarray(tokens, np.int64)[:, None], 1)[:, 0]

    def forward(self, ids: Array) -> Array:
        """All rows take ids [rows, seq] in; logits of every position [rows, seq, vocabulary]."""
        if ids.shape[1] == 1:
            return self.step(ids[:, 0].tolist())[:, None]
        return np.stack([np.array(self.feed(row, part.tolist(), keep=0)) for row, part in enumerate(ids)])

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Array:
        """Every row takes its prompt in; logits [rows, vocabulary] after its last token."""
        return np.stack([np.array(self.feed(row, prompt)[-1]) for row, prompt in enumerate(prompts)])

    def bind(self, row: int) -> None:
        """All that passes of this row alone need, without one: graphs open, adapters packed and bound."""
        for single in (False, True):
            self._bound(row, row + 1, single=single)

    def _pass(self, start: int, stop: int, ids: Array, keep: int) -> Array:
        count = ids.shape[1]
        after = self.lengths[start:stop] + count
        if int(after.max()) > self.capacity:
            raise EdgeftError(f"The cache holds {self.capacity} tokens, and {int(after.max())} are wanted.")
        binding = self._bound(start, stop, single=count == 1)
        for row in range(start, stop):
            self._mask[row, self.lengths[row] : self.lengths[row] + count] = 1
        logits = binding.run(ids, keep, self.graphs.vocabulary)
        self.lengths[start:stop] = after
        return logits

    def _bound(self, start: int, stop: int, *, single: bool) -> Binding:
        kinds = self._kinds[start:stop]
        kind = "scale" if "scale" in kinds else "lowrank" if "lowrank" in kinds else ""
        if self.graphs.reopens(kind, single=single):
            self._bindings.clear()  # they would keep the graph alive that has to go first
        session = self.graphs.for_step(kind, single=single)
        where = (session.file, start, stop)
        binding = self._bindings.get(where)
        if binding is None or binding.session is not session:
            binding = self._bindings[where] = self._bind(session, start, stop)
        if session.slotted:
            self._give_slots(binding, start, self.used[start:stop], self._keys[start:stop])
        return binding

    def _bind(self, session: Session, start: int, stop: int) -> Binding:
        binding = Binding(session, stop - start)
        for name, buffer in self.buffers.items():
            binding.give(f"past_key_values.{name}", buffer[start:stop])
            binding.take(f"past_key_values.{name}")
        binding.give("attention_mask", self._mask[start:stop])
        return binding

    def _give_slots(self, binding: Binding, start: int, used: Sequence[Used], keys: list[Any]) -> None:
        if binding.session.file not in ROWS:
            if binding.slots != keys:
                self._give(binding, keys, self._gated(binding, used))
        elif len(set(keys)) == 1:
            if binding.slots != keys[:1] or (keys[0] and self._pinned != ("rows", keys[0])):
                self._give(binding, keys[:1], {**self.shelf.nothing, **self._own(used[0], keys[0])})
        elif self._matrices is None or binding.slots != [self._matrices, *keys] \
                or self._matrices.held[start : start + len(keys)] != keys:
            room = self._place(start, used, keys)
            self._give(binding, [room, *keys], {**self.shelf.nothing, **{
                name: array[start:] for name, array in room.values(start + len(used)).items()}})

    def _give(self, binding: Binding, keys: list[Any], values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            binding.give(name, value)
        binding.slots = keys

    def _gated(self, binding: Binding, used: Sequence[Used]) -> dict[str, Array]:
        """For the contract's graph; what earlier adapters left in the binding goes back to its default."""
        slots = self.shelf.slots(used)
        values = {**slots.shared, **slots.rows}
        return {**values, **{name: array for name, array in defaults(binding.session).items()
                             if name in binding.held and name not in values}}

    def _own(self, used: Used, key: Any) -> Values:
        """One mix's matrices for all rows; the budget counts them for as long as a binding reads them."""
        if not key:
            return {}
        self._let_go(key)
        self._pinned, values = self.shelf.matrices(used)
        self.shelf.budget.pin(self._pinned)
        return values

    def _unpin(self) -> None:
        if self._pinned is not None:
            self.shelf.budget.unpin(self._pinned)
            self._pinned = None

    def _let_go(self, key: Any = None) -> None:
        """Bindings drop what they hold of adapters; with a key, but for this mix and what rows share."""
        self._unpin()
        for binding in self._bindings.values():
            stays = key and binding.slots and (binding.slots in ([key], [()]) or binding.slots[0] is self._matrices)
            if binding.session.file in ROWS and not stays:
                binding.drop_slots()

    def _place(self, start: int, used: Sequence[Used], keys: Sequence[Any]) -> packing.RowMatrices:
        """Every row's own matrices in the room that rows share."""
        needs = [self.shelf.ranks(row) for row in used]
        ranks = {name: max(need[name] for need in needs) for name in needs[0]}
        stop = start + len(used)
        if self._matrices is None or not self._matrices.fits(stop, ranks):
            if self._matrices is not None:
                ranks = {name: max(rank, self._matrices.ranks[name]) for name, rank in ranks.items()}
            self._let_go()
            self._matrices = None  # gone before the larger one is there
            self.shelf.budget.reserve(-self._matrices_size, "")
            self._matrices_size, rows = 0, max(stop, self.most)
            size = packing.size(self.shelf.groups, rows, ranks)
            self.shelf.budget.reserve(size, f"Room for {rows} requests, each with its own adapters,")
            self._matrices_size = size
            self._matrices = packing.RowMatrices(self.shelf.groups, rows, ranks)
        for row, (mix, key) in enumerate(zip(used, keys, strict=True), start):
            if self._matrices.held[row] != key:
                self._matrices.place(row, key, _arrays(self.shelf.matrices(mix)[1]) if key else {})
        return self._matrices


def _arrays(values: Values) -> dict[str, Array]:
    return {name: value.numpy() for name, value in values.items()}
