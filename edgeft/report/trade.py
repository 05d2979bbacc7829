"""The chart of two costs: a mark for each run, its interval, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgeft.contract import svg

from . import axis
from .axis import Axis
from .charts import LINE, STEEP, WIDEST, both, grid, kind, leader, mark, picture, polyline, room_for
from .pareto import front
from .places import Box, place

Place = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """One run: what it costs along and what it reaches across."""

    label: str
    index: int
    x: float
    y: float
    interval: tuple[float, float] | None = None  # of x


def pareto(points: Sequence[Point], title: str, description: str, names: tuple[str, str], *,
           more_is_better: bool = False) -> str:
    """Two costs of each run, `names` along and across, with the front of those that no other run beats on both."""
    return both(lambda width: _pareto(points, title, description, names, more_is_better, width), WIDEST)


def best(points: Sequence[Point], *, more_is_better: bool) -> list[int]:
    """Indices of the points on the front."""
    return front([(point.x, -point.y if more_is_better else point.y) for point in points])


def _pareto(points: Sequence[Point], title: str, description: str, names: tuple[str, str], more: bool,
            width: float) -> str:
    height = max(400, 20 * len(points) + 140)
    y = axis.fit_axis([point.y for point in points], height - 44, 44, steep=STEEP, pad=0.12)
    spans = [value for point in points for value in (point.x, *(point.interval or ()))]
    x = axis.fit_axis(spans, room_for(y), width - 14, pad=0.1)
    places = [(x.at(point.x), y.at(point.y)) for point in points]
    kept = best(points, more_is_better=more)
    stairs = _stairs([places[item] for item in kept], x.end, y.start if more else y.end)
    spread = [(x.at(point.interval[0]), x.at(point.interval[1])) if point.interval else None for point in points]
    taken = [_around(one, other) for one, other in pairwise(stairs)]
    taken += [_around((ends[0], mid), (ends[1], mid)) for ends, (_, mid) in zip(spread, places, strict=True) if ends]
    parts = [*grid(x, y, *(f"{name}, logarithmic" if of.log else name for name, of in zip(names, (x, y), strict=True))),
             svg.text(width - 14, 38, "better \u2196" if more else "better \u2199", "note", text_anchor="end"),
             *_zero(x, y),
             svg.element("path", svg.title("the Pareto front: no run betters these on both counts"),
                         d=polyline(stairs), class_="front"),
             *(_interval(*ends, mid, point.index) for point, ends, (_, mid) in zip(points, spread, places, strict=True)
               if ends),
             *_named(points, places, set(kept), (x.start + 2, 46, width - 4, height - 46), taken)]
    return picture(width, height, title, description, parts)


def _named(points: Sequence[Point], places: Sequence[Place], kept: set[int], bounds: Box,
           taken: Sequence[Box]) -> list[str]:
    """Marks with their names, and a line between the two where they are far apart."""
    labels = [svg.fit(point.label, 0.38 * (bounds[2] - bounds[0])) for point in points]
    sizes = [(svg.width_of(label, 13) + 4, float(LINE)) for label in labels]  # those on the front are bold
    parts = []
    for item, (left, top) in enumerate(place(places, sizes, bounds, taken)):
        point, (x, y) = points[item], places[item]
        near = (min(max(x, left), left + sizes[item][0]), min(max(y, top), top + LINE))
        if (near[0] - x) ** 2 + (near[1] - y) ** 2 > 20**2:
            parts.append(leader((x, y), near, point.index))
        parts += [svg.element("g", svg.title(f"{point.label}: {point.x:.4g}, {point.y:.4g}"),
                              mark(x, y, point.index, 5.5 if item in kept else 4.5)),
                  svg.text(left, top + 11.5, labels[item], kind("name best" if item in kept else "name", point.index))]
    return parts


def _interval(low: float, high: float, y: float, index: int) -> str:
    """A bar with its two ends."""
    ends = "".join(polyline([(end, y - 4), (end, y + 4)]) for end in (low, high))
    return svg.element("path", d=polyline([(low, y), (high, y)]) + ends, class_=kind("interval", index))


def _zero(x: Axis, y: Axis) -> list[str]:
    """Where nothing is forgotten, if the axis reaches there."""
    if x.log or not x.low < 0 < x.high:
        return []
    return [svg.element("path", d=polyline([(x.at(0), y.start), (x.at(0), y.end)]), class_="zero")]


def _stairs(corners: Sequence[Place], right: float, worst: float) -> list[Place]:
    """From one point of the front to the next along what both of them beat, out to the edges."""
    found, height = [], worst
    for x, y in corners:
        found += [(x, height), (x, y)]
        height = y
    return [*found, (right, height)]


def _around(one: Place, other: Place) -> Box:
    """The box of an upright or level line with some room."""
    return (min(one[0], other[0]) - 3, min(one[1], other[1]) - 3, max(one[0], other[0]) + 3, max(one[1], other[1]) + 3)
