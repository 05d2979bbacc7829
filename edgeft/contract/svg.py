"""What our charts are drawn with: SVG as text, everything that comes from outside escaped."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from html import escape

Panel = tuple[str, Sequence[tuple[str, float]]]  # what is measured, and a label with a value per bar

ROW, BAR, HEAD = 24, 16, 34  # heights: of a row of bars, of its bar, of a panel's heading
_NEVER = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")  # no XML, and no UTF-8, may hold them


def clean(text: str) -> str:
    """Text with what no document may hold replaced."""
    return _NEVER.sub("\ufffd", text)


def escaped(words: str) -> str:
    """Words as markup that says just them."""
    return escape(clean(words))


def number(value: float) -> str:
    """A coordinate."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def element(tag: str, *inside: str, **attributes: object) -> str:
    """One element around markup; `stroke_width=2` becomes stroke-width="2", attributes that are None are left out."""
    said = "".join(f' {name.rstrip("_").replace("_", "-")}="{_value(value)}"'
                   for name, value in attributes.items() if value is not None)
    return f"<{tag}{said}>{''.join(inside)}</{tag}>" if inside else f"<{tag}{said}/>"


def _value(value: object) -> str:
    return number(value) if isinstance(value, (int, float)) else escaped(str(value))


def text(x: float, y: float, words: str, kind: str | None = None, **attributes: object) -> str:
    """Words at a place, escaped."""
    return element("text", escaped(words), x=x, y=y, class_=kind, **attributes)


def title(words: str) -> str:
    """What a browser shows for the element around it when pointed at."""
    return element("title", escaped(words))


def width_of(words: str, size: float = 12) -> float:
    """About how wide words are in a sans-serif font, in pixels, and rather more than less."""
    return sum(size if unicodedata.east_asian_width(letter) in "WF" else
               size * (0.85 if letter in "mwMW@%" else 0.6) for letter in words)


def fit(words: str, width: float, size: float = 12) -> str:
    """Words cut in the middle to fit: runs often differ at their ends."""
    if width_of(words, size) <= width:
        return words
    for kept in range(len(words) - 1, 1, -1):
        cut = f"{words[: kept - kept // 2]}…{words[len(words) - kept // 2 :]}"
        if width_of(cut, size) <= width:
            return cut
    return "…"


def bars(panels: Sequence[Panel], style: Callable[[str], str], *, width: float = 720, labels: float = 200,
         values: float = 90, margin: float = 16, top: float = 0,
         decimals: int | None = None) -> tuple[list[str], float]:
    """Rows of label, bar and number below `top`, and where they end; bars of a panel share one scale that holds 0.

    `style` gives a bar's class by its label; a bar below 0 goes to the left. Without `decimals` a panel's numbers have
    one where they reach 10, and three otherwise.
    """
    parts, y, left = [], top, labels
    for name, rows in panels:
        parts.append(text(margin, y + 18, name, "panel"))
        y += HEAD - 8
        most, least = (choose([0.0, *(value for _, value in rows)]) for choose in (max, min))
        scale = (width - labels - values - margin) / ((most - least) or 1.0)
        digits = decimals if decimals is not None else 1 if max(most, -least) >= 10 else 3
        for label, value in rows:
            parts += _row(y, label, value, f"{value:,.{digits}f}", style(label), margin, left - least * scale, scale,
                          left)
            y += ROW
        y += 12
    return parts, y


def _row(y: float, label: str, value: float, shown: str, kind: str, margin: float, zero: float, scale: float,
         left: float) -> list[str]:
    size = max(1.0, abs(value) * scale)
    start = zero if value >= 0 else zero - size
    return [text(margin, y + BAR - 3, fit(label, left - margin - 8, 13)),
            element("rect", title(f"{label}: {shown}"), class_=f"{kind} bar", x=start, y=y, width=size, height=BAR,
                    rx=2),
            text(max(zero, start + size) + 8, y + BAR - 3, shown, "number")]
