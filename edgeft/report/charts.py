"""The page's charts as inline SVG, each drawn twice, for a wide page and for a phone; the page has their style."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeft.contract import svg

from . import axis
from .axis import Axis
from .places import spread
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


def both(draw: Callable[[float], str], wide: float = WIDE) -> str:
    """The drawing for a wide page and for a narrow one; the style sheet shows one of them."""
    return "".join(f'<div class="{name}">{draw(width)}</div>' for name, width in (("wide", wide), ("narrow", NARROW)))


def mark(x: float, y: float, index: int, size: float = 5) -> str:
    """A run's mark: its shape and colour, hollow once the colours are used up."""
    return svg.element("path", d=SHAPES[index % len(SHAPES)], class_=kind("mark", index),
                       transform=f"translate({svg.number(x)} {svg.number(y)}) scale({svg.number(size)})")


def kind(what: str, index: int) -> str:
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
    left = room_for(y)
    x = Axis(0, max(1.0, *(step for line in lines for step, _ in line.points)), left, width - room)
    unit = f"{unit}, logarithmic" if y.log else unit
    parts = [*grid(x, y, "step", unit)]
    ends = []
    for line in lines:
        places = [(x.at(step), y.at(value)) for step, value in thin(line.points)]
        if line.faint:
            faint = polyline([(x.at(step), y.at(value)) for step, value in thin(line.faint)])
            parts.append(svg.element("path", d=faint, class_=kind("faint", line.index)))
        parts.append(svg.element("path", svg.title(line.label), d=polyline(places), class_=kind("line", line.index)))
        if line.marks or len(places) == 1:
            parts += [mark(*spot, line.index, 3.5) for spot in places]
        ends.append(places[-1])
    heights = spread([end for _, end in ends], LINE, 30, height - 44)
    for line, end, where in zip(lines, ends, heights, strict=True):
        parts += [leader(end, (x.end + 10, where), line.index),
                  svg.text(x.end + 14, where + 4, svg.fit(line.label, room - 18), kind("name", line.index))]
    return picture(width, height, title, description, parts)


def leader(one: tuple[float, float], other: tuple[float, float], index: int) -> str:
    """From what is named to its name."""
    return svg.element("path", d=polyline([one, other]), class_=kind("leader", index))


def bars(panels: Sequence[svg.Panel], title: str, description: str, style: Callable[[str], str]) -> str:
    """Bars with their numbers."""
    def draw(width: float) -> str:
        longest = max(svg.width_of(label, 13) for _, rows in panels for label, _ in rows)
        parts, height = svg.bars(panels, style, width=width, labels=min(longest + 14, 0.5 * width), values=72, margin=2)
        return picture(width, height, title, description, parts)

    return both(draw, WIDEST)


def picture(width: float, height: float, title: str, description: str, parts: Sequence[str]) -> str:
    """A chart with what it shows in words."""
    return svg.element("svg", svg.title(title), svg.element("desc", svg.escaped(description)), *parts,
                       role="img", viewBox=f"0 0 {width:g} {height:g}", width=width, height=height)


def polyline(places: Sequence[tuple[float, float]]) -> str:
    """A path through places in pixels."""
    return "M" + "L".join(f"{svg.number(x)} {svg.number(y)}" for x, y in places)


def room_for(y: Axis) -> float:
    """Pixels on the left that the numbers of an axis take."""
    ticks = y.ticks()
    return max((svg.width_of(_tick(y, tick, ticks), 11) for tick in ticks), default=20) + 12


def _tick(of: Axis, value: float, ticks: Sequence[float]) -> str:
    return axis.log_label(value) if of.log else axis.label(value, ticks)


def grid(x: Axis, y: Axis, x_name: str, y_name: str) -> list[str]:
    """Grid lines with their numbers, and what the axes are."""
    parts = []
    rows, columns = y.ticks(), x.ticks(max(3, int((x.end - x.start) / 64)))
    for value in rows:
        at = y.at(value)
        parts += [svg.element("path", d=polyline([(x.start, at), (x.end, at)]), class_="grid"),
                  svg.text(x.start - 6, at + 4, _tick(y, value, rows), "tick", text_anchor="end")]
    for value in columns:
        at = x.at(value)
        parts += [svg.element("path", d=polyline([(at, y.start), (at, y.start + 4)]), class_="axis"),
                  svg.text(at, y.start + 17, _tick(x, value, columns), "tick", text_anchor="middle")]
    return [*parts, svg.element("path", d=polyline([(x.start, y.start), (x.end, y.start)]), class_="axis"),
            svg.text(2, 14, y_name, "unit"),
            svg.text((x.start + x.end) / 2, y.start + 33, x_name, "unit", text_anchor="middle")]
