"""A graph bound to rows of a batch: inputs and outputs in memory that stays where it is from one pass to the next."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from edgeft.contract.bundle import LOGITS_TO_KEEP

from .session import Session

Array = np.ndarray[Any, Any]
NARROW = 16  # tokens of a pass


class Binding:
    """A graph bound to some of the rows; `held` keeps alive what the binding knows only by address."""

    def __init__(self, session: Session, rows: int) -> None:
        self.session, self.rows = session, rows
        self.io = session.ort.io_binding()
        self.held: dict[str, ort.OrtValue] = {}
        self.slots: list[Any] | None = None  # of which rows with which adapters the slots are bound
        self.ids: Array = np.zeros((rows, 0), np.int64)
        self.logits: Array = np.zeros((rows, 0, 0), np.float32)
        self._keep = np.zeros(1, np.int64)
        self._widths: dict[tuple[int, int], tuple[ort.OrtValue, Array, ort.OrtValue, Array]] = {}

    def give(self, name: str, value: Array | ort.OrtValue) -> None:
        """Bind an input to an array, which is read at every run."""
        self.held[name] = value if isinstance(value, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(value)
        self.io.bind_ortvalue_input(name, self.held[name])

    def take(self, name: str) -> None:
        """Bind an output to the input's own memory under another name."""
        self.io.bind_ortvalue_output(name.replace("past_key_values", "present"), self.held[name])

    def drop_slots(self) -> None:
        """Let go of adapters' matrices; the slots must be given again before the next pass."""
        self.slots = None
        for name in [name for name in self.held if name.endswith((".A", ".B"))]:
            del self.held[name]

    def run(self, ids: Array, keep: int, vocabulary: int) -> Array:
        """One pass; logits [rows, kept, vocabulary], in a buffer that the next pass of this shape overwrites."""
        keep = min(keep, ids.shape[1])
        if self.session.keeps and (LOGITS_TO_KEEP not in self.held or self._keep[0] != keep):
            self._keep[0] = keep
            self.give(LOGITS_TO_KEEP, self._keep)
        kept = keep if keep and self.session.keeps else ids.shape[1]
        if (self.ids.shape[1], self.logits.shape[1]) != (ids.shape[1], kept):
            self._bind_width(ids.shape[1], kept, vocabulary)
        self.ids[...] = ids
        self.session.ort.run_with_iobinding(self.io)
        return self.logits if not keep else self.logits[:, -keep:]

    def _bind_width(self, seq: int, kept: int, vocabulary: int) -> None:
        """Ids and logits of this width; those of narrow passes are kept, since drafts change from one to the next."""
        found = self._widths.get((seq, kept))
        if found is None:
            ids = np.zeros((self.rows, seq), np.int64)
            logits = ort.OrtValue.ortvalue_from_shape_and_type((self.rows, kept, vocabulary), np.float32)
            found = (ort.OrtValue.ortvalue_from_numpy(ids), ids, logits, logits.numpy())
            if seq <= NARROW:
                self._widths[seq, kept] = found
        self.held["input_ids"], self.ids, self.held["logits"], self.logits = found
        self.io.bind_ortvalue_input("input_ids", self.held["input_ids"])
        self.io.bind_ortvalue_output("logits", self.held["logits"])
