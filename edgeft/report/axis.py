"""An axis: from values to pixels, with round numbers along it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

LOG_FROM = 12  # largest over smallest value from which an axis is logarithmic
TINY = 1e-12  # what is smaller counts as nothing


@dataclass(frozen=True)
class Axis:
    """From `low` at pixel `start` to `high` at pixel `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value; what lies outside is put on the edge."""
        value = min(max(value, self.low), self.high)
        low, high, where = (math.log10(part) if self.log else part for part in (self.low, self.high, value))
        return self.start + (where - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within."""
        if self.log:
            return _log_ticks(self.low, self.high, most)
        step = _round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        return [round(number * step, 12) for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def fit_axis(values: Sequence[float], start: float, end: float, *, steep: float = LOG_FROM, pad: float = 0.06) -> Axis:
    """An axis around values with some room; logarithmic where the largest is so many times the smallest."""
    low, high = min(values), max(values)
    if low > TINY and high / low >= steep:
        room = max(pad * math.log10(high / low), 0.02)
        return Axis(low / 10**room, high * 10**room, start, end, True)
    span, size = high - low, max(abs(low), abs(high))
    room = span * pad if span > max(TINY, 1e-9 * size) else size * 0.1 if size > TINY else 1.0
    return Axis(low - room, high + room, start, end)


def label(value: float, ticks: Sequence[float]) -> str:
    """A tick's number with just the digits that tell the ticks apart."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if largest >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.10g}" if len(ticks) < 2 else f"{value:.{_digits(ticks)}f}"


def log_label(value: float) -> str:
    """A tick's number on a logarithmic axis."""
    return f"{value:g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _digits(ticks: Sequence[float]) -> int:
    step = min(abs(later - earlier) for earlier, later in pairwise(ticks))
    return max(0, min(10, -math.floor(math.log10(step) + 1e-9))) if step else 2


def _round_step(step: float) -> float:
    scale = 10 ** math.floor(math.log10(step))
    return next(factor for factor in (1, 2, 5, 10) if factor * scale >= step * (1 - 1e-9)) * scale


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [round(factor * 10.0**power, 12) for power in decades for factor in factors
                 if low <= factor * 10.0**power <= high]
        if len(found) <= most:
            break
    return found[:: math.ceil(len(found) / most)]
