"""Which runs no other one beats on both counts."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other equals or betters in both numbers and betters in one; less is better.

    In the order of the first number.
    """
    kept = [index for index, point in enumerate(points) if not any(_beats(other, point) for other in points)]
    return sorted(kept, key=lambda index: points[index])


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one != other
