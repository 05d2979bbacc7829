"""The rows of a batch on a traced graph: past in, a longer present out, and no row joins once it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeft.contract.errors import EdgeftError, UsageError

from .adapters import length_of
from .session import Graphs
from .shelf import Shelf, Used

Array = np.ndarray[Any, Any]
CHUNK = 512  # tokens in one pass over a long prompt


class GrowingLanes:
    """As `Lanes`, for graphs without a shared buffer; what a row lacks in length the mask hides for good."""

    joins, most = False, 1

    def __init__(self, graphs: Graphs, shelf: Shelf, capacity: int, rows: int = 1) -> None:
        if capacity > shelf.bundle.context:
            raise EdgeftError(f"{capacity} tokens are wanted and the bundle's context is {shelf.bundle.context}.")
        self.graphs, self.shelf, self.capacity = graphs, shelf, capacity
        self.used: list[Used] = []
        self.lengths = np.zeros(0, np.int64)
        self.past: dict[str, Array] = {}
        self.mask = np.zeros((0, 0), np.int64)
        self._started = False

    @property
    def pads(self) -> bool:
        """Whether prompts of different lengths may go in together."""
        return self.graphs.padding == "anywhere"

    @property
    def rows(self) -> int:
        """How many rows are running."""
        return len(self.used)

    def join(self, used: Used, capacity: int = 0) -> int:
        """One more row; all must be there before the first token goes in."""
        assert not self._started
        length = length_of(self.shelf.prefix(used))
        self.capacity = max(self.capacity, capacity)
        if length >= self.capacity:
            raise EdgeftError(f"The soft prompt takes {length} tokens, and the cache holds {self.capacity}: no room is "
                              "left for a prompt.")
        self.used.append(used)
        self.lengths = np.append(self.lengths, length)
        self.shelf.use(used)
        return self.rows - 1

    def _start(self) -> None:
        """Soft prompts into the first columns, the shorter ones padded."""
        if self._started:
            return
        self._started, longest = True, int(self.lengths.max())
        prefixes = [self.shelf.prefix(row) for row in self.used]
        for layer, (heads, size) in enumerate(self.graphs.layers):
            for part, name in enumerate(("key", "value")):
                array = np.zeros((self.rows, heads, longest, size), np.float32)
                for row, prefix in enumerate(prefixes):
                    if prefix:
                        array[row, :, : prefix[layer][part].shape[1]] = prefix[layer][part]
                self.past[f"{layer}.{name}"] = array
        self.mask = (np.arange(longest) < self.lengths[:, None]).astype(np.int64)

    def leave(self, row: int) -> None:
        """Take a row out; the last one moves into its place."""
        last = self.rows - 1
        self.shelf.release(self.used[row])
        order = [*range(row), *([last] if row != last else []), *range(row + 1, last)]
        if self._started:
            self.past = {name: np.ascontiguousarray(array[order]) for name, array in self.past.items()}
            self.mask = self.mask[order]
        self.lengths = self.lengths[order]
        self.used = [self.used[item] for item in order]

    def close(self) -> None:
        """Give the memory back."""
        while self.used:
            self.leave(self.rows - 1)
        self.past = {}

    def feed(self, row: int, ids: Sequence[int], *, keep: int = 1) -> Array:
        """The only row takes tokens in; logits of the last `keep`, or with 0 of all: [kept, vocabulary]."""
        assert self.rows == 1
        parts = [self._pass(np.asarray([ids[start : start + CHUNK]], np.int64), None)[0]
                 for start in range(0, len(ids), CHUNK)]
        return np.concatenate(parts) if not keep else parts[-1][-keep:]

    def step(self, tokens: Sequence[int], rows: int | None = None) -> Array:
        """Every row takes one token; logits [rows, vocabulary]."""
        return self._pass(np.asarray(tokens, np.int64)[:, None], None)[:, 0]

    def forward(self, ids: Array) -> Array:
        """All rows take ids [rows, seq] in; logits of every position."""
        return self._pass(ids, None)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Array:
        """All rows in one pass, the shorter ones padded on the right; one prompt alone goes in by chunks."""
        if self.rows == 1:
            return self.feed(0, prompts[0])
        counts = [len(prompt) for prompt in prompts]
        if len({*zip(counts, self.lengths.tolist(), strict=True)}) > 1 and not self.pads:
            raise UsageError("This model takes only prompts of one length in a batch; ask one at a time.")
        ids = np.zeros((len(prompts), max(counts)), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        return self._pass(ids, counts)[np.arange(len(prompts)), np.asarray(counts) - 1]

    def keys_values(self, row: int) -> dict[str, Array]:
        """What a row holds, by names as in `past`: [heads, columns, size] each."""
        return {name: array[row] for name, array in self.past.items()}

    def _pass(self, ids: Array, counts: Sequence[int] | None) -> Array:
        self._start()
        lengths = np.asarray(counts if counts is not None else [ids.shape[1]] * self.rows)
        fresh = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
        mask = np.concatenate([self.mask, fresh], axis=1)
        wanted = int((self.lengths + lengths).max())  # columns that no row fills cost no position
        if wanted > self.capacity:
            raise EdgeftError(f"The cache holds {self.capacity} tokens, and {wanted} are wanted.")
        scaled = any(self.shelf.kind(row) == "scale" for row in self.used)
        session = self.graphs.for_step("scale" if scaled else "lowrank" if any(self.used) else "", single=False)
        slots = self.shelf.slots(self.used)
        feeds = {"input_ids": ids, "attention_mask": mask,
                 **session.fill({**slots.shared, **slots.rows}),
                 **{f"past_key_values.{name}": array for name, array in self.past.items()}}
        names = ["logits", *(f"present.{name}" for name in self.past)]
        found = session.ort.run_with_ort_values(
            names, {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()})
        self._held = found  # arrays below are views of these
        self.past = {name: value.numpy() for name, value in zip(self.past, found[1:], strict=True)}
        self.mask, self.lengths = mask, self.lengths + lengths
        logits: Array = found[0].numpy()
        return logits
