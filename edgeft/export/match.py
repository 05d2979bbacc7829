"""Which base tensors a graph's weight is made of, by its numbers alone: names are whatever an exporter made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeft.contract.slots import Array


@dataclass(frozen=True)
class Part:
    """Rows of a base tensor; a bias counts as one row of numbers after the other."""

    name: str
    start: int
    rows: int
    whole: bool


@dataclass(frozen=True)
class Match:
    """Parts that stand below each other, and whether the graph holds the result transposed."""

    parts: tuple[Part, ...]
    turned: bool


@dataclass(frozen=True)
class Failed:
    """A weight that is not the base's: its views, and the row of each from which on no tensor fits."""

    places: tuple[tuple[Array, int], ...]


@dataclass(frozen=True)
class Tolerance:
    """How far a graph's numbers may be from the base's.

    `relative` and `absolute` hold for each number, as a float type rounds; `norm` for all of them together, as integers
    do: some quantizers move single numbers by more than a step.
    """

    relative: float = 1e-6
    absolute: float = 1e-7
    norm: float = 0.0

    def around(self, value: float) -> Tolerance:
        """For numbers that were rounded when this value had been added to them."""
        return Tolerance(self.relative, self.absolute + 2 * value * max(self.relative, 2**-23), self.norm)

    def holds(self, found: Array, wanted: Array) -> bool:
        """Whether `found` is `wanted` as this type would hold it."""
        if self.norm:
            return bool(distance(found, wanted) <= self.norm)
        return bool((np.abs(found - wanted) <= self.relative * np.abs(wanted) + self.absolute).all())


TOLERANCES = {"float": Tolerance(), "float16": Tolerance(2**-11, 2**-24), "bfloat16": Tolerance(2**-8, 2**-24),
              "8 bits": Tolerance(norm=0.1), "4 bits": Tolerance(norm=0.25), "2 bits": Tolerance(norm=0.6)}


def distance(found: Array, wanted: Array) -> float:
    """Norm of the difference over the norm of what is wanted."""
    size = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(found - wanted)) / size if size else float(np.linalg.norm(found))


class Matcher:
    """Looks weights up among the tensors of a base."""

    def __init__(self, tensors: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.tensors, self.shapes, self.used = tensors, dict(shapes), set[str]()
        self._first = {name: np.array(self._read(name)[:1]) for name, shape in self.shapes.items() if len(shape) == 2}

    def _read(self, name: str) -> Array:
        return np.asarray(self.tensors[name], np.float32)

    def match(self, weight: Array, tolerance: Tolerance, hint: str = "") -> Match | Failed:
        """The base tensors of one weight; `hint` is its own name, which decides among tensors of equal numbers."""
        views = [(weight, False)] if weight.ndim == 1 else [(weight.T, True), (weight, False)]
        failed = []
        for view, turned in views:
            parts = self._walk(view, tolerance, hint)
            if not isinstance(parts, int):
                self.used |= {part.name for part in parts}
                return Match(tuple(parts), turned)
            failed.append((view, parts))
        return Failed(tuple(failed))

    def nearest(self, failed: Failed) -> tuple[str, str]:
        """For the message: the tensor that fits best where the weight failed, and how far off it is; else no name."""
        furthest = max(row for _, row in failed.places)
        found = [(distance(view[row : row + self.shapes[name][0]], self._read(name)), name)
                 for view, row in failed.places if row == furthest for name in self._fitting(view, row)]
        place = f"from row {furthest} on, " if furthest else ""
        if not found:
            return "", f"{place}no tensor of the base has this shape"
        off, name = min(found)
        return name, f"{place}nearest {name}, off by {off:.1e} of its size"

    def twin(self, name: str) -> str:
        """A tensor of the same numbers that was found: exporters hold such two only once. Empty if there is none."""
        return next((other for other in self.used if self.shapes[other] == self.shapes[name]
                     and np.array_equal(self._read(other), self._read(name))), "")

    def _walk(self, view: Array, tolerance: Tolerance, hint: str) -> list[Part] | int:
        """Tensors one below the other until all rows are found, or the row from which on none fits."""
        parts: list[Part] = []
        row = 0
        while row < len(view):
            fitting = [name for name in self._candidates(view, row, tolerance)
                       if tolerance.holds(view[row : row + self.shapes[name][0]], self._read(name))]
            if not fitting:
                slice_ = None if parts else self._slice(view, tolerance)
                return [slice_] if slice_ else row
            name = min(fitting, key=lambda name: (name in self.used, -_alike(name, hint)))
            parts.append(Part(name, 0, self.shapes[name][0], True))
            row += self.shapes[name][0]
        return parts

    def _fitting(self, view: Array, row: int) -> Iterator[str]:
        """Tensors whose shape goes in from this row on."""
        for name, shape in self.shapes.items():
            if shape[1:] == view.shape[1:] and len(shape) == view.ndim and shape[0] <= len(view) - row:
                yield name

    def _candidates(self, view: Array, row: int, tolerance: Tolerance) -> Iterator[str]:
        """Those of them whose first row looks right."""
        for name in self._fitting(view, row):
            if view.ndim == 1 or self._begins(view[row : row + 1], name, tolerance):
                yield name

    def _begins(self, row: Array, name: str, tolerance: Tolerance) -> bool:
        if tolerance.norm:  # one row may be off by more than all of them
            return distance(row, self._first[name]) <= 2 * tolerance.norm
        return tolerance.holds(row, self._first[name])

    def _slice(self, view: Array, tolerance: Tolerance) -> Part | None:
        """Rows out of one larger tensor, as of a packed projection that the exporter took apart."""
        for name, shape in self.shapes.items():
            if len(shape) != 2 or view.ndim != 2 or shape[1:] != view.shape[1:] or shape[0] <= len(view):
                continue
            whole = self._read(name)
            errors = np.linalg.norm(whole[: len(whole) - len(view) + 1] - view[0], axis=1)
            start = int(errors.argmin())
            if tolerance.holds(view, whole[start : start + len(view)]):
                return Part(name, start, len(view), False)
        return None


def _alike(name: str, hint: str) -> int:
    """How many parts two dotted names share."""
    words: Sequence[str] = hint.replace("/", ".").split(".")
    return sum(part in words for part in name.split("."))
