"""The page's charts as inline SVG; each drawn twice, for a wide page and for a phone, and styled by the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgeft.contract import svg

from . import axis
from .axis import Axis
from .pareto import front
from .places import Box, place, spread
from .runs import Points, thin

WIDE, WIDEST, NARROW = 560, 860, 352  # pixels; a phone shows the last at about its own size
LINE = 15  # between two labels
STEEP = 2  # largest over smallest loss from which they are drawn on a logarithmic axis: good ones lie close together
COLOURS = 6  # of the palette; later runs take them again with another dash and hollow marks
# Around 0, 0 and of size 1: circle, square, triangle, diamond, triangle down, cross
SHAPES = ("M-1 0a1 1 0 1 0 2 0a1 1 0 1 0 -2 0z", "M-.9 -.9h1.8v1.8h-1.8z", "M0 -1.1l1.1 2h-2.2z",
          "M0 -1.3l1.3 1.3l-1.3 1.3l-1.3 -1.3z", "M0 1.1l1.1 -2h-2.2z",
          "M-.4 -1.2h.8v.8h.8v.8h-.8v.8h-.8v-.8h-.8v-.8h.8z")


@dataclass(frozen=True)
class Line:
    """One run's curve."""

    label: str
    index: int
    points: Points
    faint: Points | None = None  # the same before it was smoothed
    marks: bool = False


@dataclass(frozen=True)
class Point:
    """One run in the picture of two costs."""

    label: str
    index: int
    x: float
    y: float
    interval: tuple[float, float] | None = None


def both(draw: Callable[[float], str], wide: float = WIDE) -> str:
    """The drawing for a wide page and for a narrow one; the style sheet shows one of them."""
    return "".join(f'<div class="{name}">{draw(width)}</div>' for name, width in (("wide", wide), ("narrow", NARROW)))


def mark(x: float, y: float, index: int, size: float = 5) -> str:
    """A run's mark: its shape and colour, hollow once the colours are used up."""
    return svg.element("path", d=SHAPES[index % len(SHAPES)], class_=_kind("mark", index),
                       transform=f"translate({svg.number(x)} {svg.number(y)}) scale({svg.number(size)})")


def _kind(what: str, index: int) -> str:
    """The classes of something of a run's: its colour, and what tells it from a run that has the same one."""
    turn = index // COLOURS
    return f"{what} c{index % COLOURS}{f' d{turn % 4}' if turn else ''}"


def curves(lines: Sequence[Line], title: str, description: str, unit: str) -> str:
    """Losses by step, each named at its end."""
    return both(lambda width: _curves(lines, title, description, unit, width))


def _curves(lines: Sequence[Line], title: str, description: str, unit: str, width: float) -> str:
    room = min(max(svg.width_of(line.label) for line in lines) + 24, 0.3 * width)
    height = max(320, LINE * len(lines) + 80)
    values = [value for line in lines for _, value in line.points]
    y = axis.fit_axis(values, height - 40, 30, steep=STEEP)
    left = _left(y)
    x = Axis(0, max(1.0, *(step for line in lines for step, _ in line.points)), left, width - room)
    unit = f"{unit}, logarithmic" if y.log else unit
    parts = [*_grid(x, y, "step", unit)]
    ends = []
    for line in lines:
        shown = thin(line.points)
        if line.faint:
            parts.append(svg.element("path", d=_path(x, y, thin(line.faint)), class_=_kind("faint", line.index)))
        parts.append(svg.element("path", svg.title(line.label), d=_path(x, y, shown), class_=_kind("line", line.index)))
        if line.marks or len(shown) == 1:
            parts += [mark(x.at(step), y.at(value), line.index, 3.5) for step, value in shown]
        ends.append((x.at(shown[-1][0]), y.at(shown[-1][1])))
    heights = spread([end for _, end in ends], LINE, 30, height - 44)
    for line, (end_x, end_y), where in zip(lines, ends, heights, strict=True):
        parts += [svg.element("path", d=f"M{svg.number(end_x)} {svg.number(end_y)}L{svg.number(x.end + 10)} "
                                        f"{svg.number(where)}", class_=_kind("leader", line.index)),
                  svg.text(x.end + 14, where + 4, svg.fit(line.label, room - 18), _kind("name", line.index))]
    return _picture(width, height, title, description, parts)


def pareto(points: Sequence[Point], title: str, description: str, x_name: str, y_name: str, *,
           more_is_better: bool = False) -> str:
    """Two costs of each run with the front of those that no other run beats on both."""
    return both(lambda width: _pareto(points, title, description, (x_name, y_name), more_is_better, width), WIDEST)


def _pareto(points: Sequence[Point], title: str, description: str, names: tuple[str, str], more: bool,
            width: float) -> str:
    height = max(400, 20 * len(points) + 140)
    y = axis.fit_axis([point.y for point in points], height - 44, 44, steep=STEEP, pad=0.12)
    spans = [value for point in points for value in (point.x, *(point.interval or ()))]
    left = _left(y)
    x = axis.fit_axis(spans, left, width - 14, pad=0.1)
    unit = f"{names[0]}, logarithmic" if x.log else names[0]
    parts = _grid(x, y, unit, f"{names[1]}, logarithmic" if y.log else names[1])
    parts.append(svg.text(width - 14, 38, "better ↖" if more else "better ↙", "note", text_anchor="end"))
    if not x.log and x.low < 0 < x.high:
        parts.append(svg.element("path", d=f"M{svg.number(x.at(0))} {y.end}V{y.start}", class_="zero"))
    kept = front([(point.x, -point.y if more else point.y) for point in points])
    places = [(x.at(point.x), y.at(point.y)) for point in points]
    stairs = _stairs([places[item] for item in kept], x.end, y.start if more else y.end)
    taken = [_around(one, other) for one, other in pairwise(stairs)]
    parts.append(svg.element("path", svg.title("the Pareto front: no run betters these on both counts"),
                             d="M" + "L".join(f"{svg.number(a)} {svg.number(b)}" for a, b in stairs), class_="front"))
    for point, (_, mid) in zip(points, places, strict=True):
        if point.interval:
            low, high = (x.at(value) for value in point.interval)
            taken.append(_around((low, mid), (high, mid)))
            parts.append(svg.element("path", d=f"M{svg.number(low)} {svg.number(mid)}H{svg.number(high)}m0 -4v8"
                                               f"M{svg.number(low)} {svg.number(mid - 4)}v8",
                                     class_=_kind("interval", point.index)))
    labels = [svg.fit(point.label, 0.36 * width) for point in points]
    corners = place(places, [(svg.width_of(label) + 2, LINE) for label in labels],
                    (left + 2, 46, width - 4, height - 46), taken)
    for item, (point, label, (mid_x, mid_y), (label_x, label_y)) in enumerate(
            zip(points, labels, places, corners, strict=True)):
        near = (min(max(mid_x, label_x), label_x + svg.width_of(label)), min(max(mid_y, label_y), label_y + LINE))
        if (near[0] - mid_x) ** 2 + (near[1] - mid_y) ** 2 > 20**2:
            parts.append(svg.element("path", d=f"M{svg.number(mid_x)} {svg.number(mid_y)}L{svg.number(near[0])} "
                                               f"{svg.number(near[1])}", class_=_kind("leader", point.index)))
        parts += [svg.element("g", svg.title(f"{point.label}: {point.x:.4g}, {point.y:.4g}"),
                              mark(mid_x, mid_y, point.index, 5.5 if item in kept else 4.5)),
                  svg.text(label_x, label_y + 11.5, label,
                           _kind("name best" if item in kept else "name", point.index))]
    return _picture(width, height, title, description, parts)


def _stairs(corners: Sequence[tuple[float, float]], right: float, worst: float) -> list[tuple[float, float]]:
    """From one point of the front to the next along what both of them beat, out to the edges."""
    found, height = [], worst
    for place_x, place_y in corners:
        found += [(place_x, height), (place_x, place_y)]
        height = place_y
    return [*found, (right, height)]


def _around(one: tuple[float, float], other: tuple[float, float]) -> Box:
    """The box of an upright or level line with some room."""
    return (min(one[0], other[0]) - 3, min(one[1], other[1]) - 3, max(one[0], other[0]) + 3, max(one[1], other[1]) + 3)


def bars(panels: Sequence[svg.Panel], title: str, description: str, style: Callable[[str], str]) -> str:
    """Bars with their numbers."""
    def draw(width: float) -> str:
        longest = max(svg.width_of(label, 13) for _, rows in panels for label, _ in rows)
        parts, height = svg.bars(panels, style, width=width, labels=min(longest + 14, 0.5 * width), values=72, margin=2)
        return _picture(width, height, title, description, parts)

    return both(draw, WIDEST)


def _picture(width: float, height: float, title: str, description: str, parts: Sequence[str]) -> str:
    return svg.element("svg", svg.title(title), svg.element("desc", svg.escaped(description)), *parts,
                       role="img", viewBox=f"0 0 {width:g} {height:g}", width=width, height=height)


def _path(x: Axis, y: Axis, points: Points) -> str:
    return "M" + "L".join(f"{svg.number(x.at(step))} {svg.number(y.at(value))}" for step, value in points)


def _left(y: Axis) -> float:
    ticks = y.ticks()
    return max((svg.width_of(_tick(y, tick, ticks), 11) for tick in ticks), default=20) + 12


def _tick(of: Axis, value: float, ticks: Sequence[float]) -> str:
    return axis.log_label(value) if of.log else axis.label(value, ticks)


def _grid(x: Axis, y: Axis, x_name: str, y_name: str) -> list[str]:
    """Grid lines with their numbers, and what the axes are."""
    parts = []
    rows, columns = y.ticks(), x.ticks(max(3, int((x.end - x.start) / 64)))
    for value in rows:
        at = y.at(value)
        parts += [svg.element("path", d=f"M{svg.number(x.start)} {svg.number(at)}H{svg.number(x.end)}", class_="grid"),
                  svg.text(x.start - 6, at + 4, _tick(y, value, rows), "tick", text_anchor="end")]
    for value in columns:
        at = x.at(value)
        parts += [svg.element("path", d=f"M{svg.number(at)} {svg.number(y.start)}v4", class_="axis"),
                  svg.text(at, y.start + 17, _tick(x, value, columns), "tick", text_anchor="middle")]
    return [*parts, svg.element("path", d=f"M{svg.number(x.start)} {svg.number(y.start)}H{svg.number(x.end)}",
                                class_="axis"),
            svg.text(2, 14, y_name, "unit"),
            svg.text((x.start + x.end) / 2, y.start + 33, x_name, "unit", text_anchor="middle")]
