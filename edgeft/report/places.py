"""Where labels go so that none lies on another."""

from __future__ import annotations

from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, top, right, bottom


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart, as near as can be to those wanted and within the bounds."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[tuple[float, int]] = []  # (where the first of a run of touching labels stands, how many there are)
    for index in order:
        blocks.append((wanted[index], 1))
        while len(blocks) > 1 and blocks[-2][0] + blocks[-2][1] * gap > blocks[-1][0]:
            (first, many), (second, more) = blocks[-2:]
            middle = (first * many + (second - many * gap) * more) / (many + more)
            blocks[-2:] = [(middle, many + more)]
    placed = [first + step * gap for first, many in blocks for step in range(many)]
    placed = _bounded(placed, gap, low, high)
    found = [0.0] * len(wanted)
    for index, place in zip(order, placed, strict=True):
        found[index] = place
    return found


def _bounded(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """The same, pushed down from the top bound and then up from the bottom one."""
    made = list(places)
    for index, place in enumerate(made):
        made[index] = max(place, low if index == 0 else made[index - 1] + gap)
    for index in range(len(made) - 1, -1, -1):
        made[index] = min(made[index], high if index == len(made) - 1 else made[index + 1] - gap)
    return made


def place(points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], bounds: Box,
          taken: Sequence[Box] = ()) -> list[tuple[float, float]]:
    """The left top corner of each point's label: the nearest free place around it, or the least covered one."""
    marks = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    boxes: list[Box] = []
    for index in sorted(range(len(points)), key=lambda item: points[item]):
        choices = _around(points[index], sizes[index], bounds)
        hard = [*boxes, *marks]
        boxes.append(min(choices, key=lambda box: (sum(_shared(box, other) for other in hard) > 0,
                                                   sum(_shared(box, other) for other in hard)
                                                   + 0.3 * sum(_shared(box, other) for other in taken)
                                                   + 0.5 * _distance(box, points[index]))))
    order = sorted(range(len(points)), key=lambda item: points[item])
    found = dict(zip(order, boxes, strict=True))
    return [(found[index][0], found[index][1]) for index in range(len(points))]


def _around(point: tuple[float, float], size: tuple[float, float], bounds: Box) -> list[Box]:
    """Places for a label, near ones first, all within the bounds."""
    (x, y), (width, height) = point, size
    found = []
    for far in (9, 16, 26, 38, 52, 70, 90, 120):
        slant = far * 0.7
        for left, top in ((x + far, y - height / 2), (x - far - width, y - height / 2),
                          (x - width / 2, y - far - height), (x - width / 2, y + far),
                          (x + slant, y - slant - height), (x + slant, y + slant),
                          (x - slant - width, y - slant - height), (x - slant - width, y + slant)):
            left = min(max(left, bounds[0]), bounds[2] - width)
            top = min(max(top, bounds[1]), bounds[3] - height)
            found.append((left, top, left + width, top + height))
    return found


def _shared(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    return max(0.0, width) * max(0.0, min(one[3], other[3]) - max(one[1], other[1]))


def _distance(box: Box, point: tuple[float, float]) -> float:
    x = min(max(point[0], box[0]), box[2])
    y = min(max(point[1], box[1]), box[3])
    return ((x - point[0]) ** 2 + (y - point[1]) ** 2) ** 0.5


def overlaps(boxes: Sequence[Box]) -> int:
    """How many pairs of boxes share any area."""
    return sum(_shared(one, other) > 0 for index, one in enumerate(boxes) for other in boxes[index + 1 :])
