"""A graph bound to rows of a batch: inputs and outputs in memory that stays where it is from one pass to the next."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from edgeft.contract.bundle import LOGITS_TO_KEEP

from .session import Session

Array = np.ndarray[Any, Any]


class Binding:
    """A graph bound to some of the rows; `held` keeps alive what the binding knows only by address."""

    def __init__(self, session: Session, rows: int) -> None:
        self.session, self.rows = session, rows
        self.io = session.ort.io_binding()
        self.held: dict[str, ort.OrtValue] = {}
        self.slots: list[Any] | None = None  # of which rows with which adapters the slots are bound
        self.ids: Array = np.zeros((rows, 1), np.int64)
        self.logits: Array | None = None
        self._keep = np.zeros(1, np.int64)

    def give(self, name: str, array: Array) -> None:
        """Bind an input to an array, which is read at every run."""
        self.held[name] = ort.OrtValue.ortvalue_from_numpy(array)
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
        if ids.shape != self.ids.shape or "input_ids" not in self.held:
            self.ids = np.zeros(ids.shape, np.int64)
            self.give("input_ids", self.ids)
        self.ids[...] = ids
        kept = keep if keep and self.session.keeps else ids.shape[1]
        if self.logits is None or self.logits.shape[1] != kept:
            value = ort.OrtValue.ortvalue_from_shape_and_type((self.rows, kept, vocabulary), np.float32)
            self.held["logits"], self.logits = value, value.numpy()
            self.io.bind_ortvalue_output("logits", value)
        self.session.ort.run_with_iobinding(self.io)
        return self.logits if not keep else self.logits[:, -keep:]


def defaults(session: Session) -> dict[str, Array]:
    """What a slot of the contract's graph holds when no adapter is bound to it."""
    made = {}
    for name, shape in session.inputs.items():
        if name == "adapter_gate" or name.endswith(".scale"):
            made[name] = np.ones((1, 1, 1), np.float32)
        elif name.endswith((".A", ".B")):
            first = name.endswith(".A")
            rank = str(shape[1 if first else 0])
            count = int(rank.rpartition("x")[2]) if "x" in rank else 1
            made[name] = np.zeros((shape[0], count) if first else (count, shape[1]), np.float32)
    return made
