"""A bar chart as one SVG file: no script, no font, no other file; readable on light and on dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from edgeft.contract.errors import EdgeftError

Panel = tuple[str, Sequence[tuple[str, float]]]  # what is measured, and a label with a value per bar

WIDTH, LABELS, VALUES = 720, 200, 90  # of all, of the labels on the left, of the numbers on the right
ROW, BAR, HEAD = 24, 16, 34
STYLE = """
    text { font: 13px system-ui, sans-serif; fill: #1f2328 }
    .title { font-size: 16px; font-weight: 600 }
    .panel { font-weight: 600 }
    .ground { fill: #ffffff }
    .ours { fill: #0969da }
    .theirs { fill: #8c959f }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .ground { fill: #0d1117 }
      .ours { fill: #4493f8 }
      .theirs { fill: #6e7681 }
    }"""


def chart(title: str, note: str, panels: Sequence[Panel]) -> str:
    """The SVG text; bars of a panel share one scale, which starts at 0."""
    parts, y = [_text(16, 28, title, "title"), _text(16, 48, note)], 64
    for name, bars in panels:
        parts.append(_text(16, y + 18, name, "panel"))
        y += HEAD - 8
        most = max((value for _, value in bars), default=0.0) or 1.0
        for label, value in bars:
            parts.append(_bar(y, label, value, value / most))
            y += ROW
        y += 12
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">',
        f"  <title>{escape(title)}</title>", f"  <style>{STYLE}\n  </style>",
        f'  <rect class="ground" width="{WIDTH}" height="{y}"/>', *parts, "</svg>", ""])


def write_chart(path: Path, title: str, note: str, panels: Sequence[Panel]) -> None:
    """Write the chart; EdgeftError where that cannot be."""
    try:
        path.write_text(chart(title, note, panels), encoding="utf-8")
    except OSError as error:
        raise EdgeftError(f"{path}: the chart cannot be written ({error.strerror}). Choose another place.") from None


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    chosen = f' class="{kind}"' if kind else ""
    return f'  <text x="{x:g}" y="{y:g}"{chosen}>{escape(text)}</text>'


def _bar(y: float, label: str, value: float, share: float) -> str:
    """One row: label, bar, number."""
    width = max(1.0, share * (WIDTH - LABELS - VALUES - 16))
    kind = "ours" if label.startswith("edgeft") else "theirs"
    return "\n".join([
        _text(16, y + BAR - 3, label),
        f'  <rect class="{kind} bar" x="{LABELS}" y="{y:g}" width="{width:.1f}" height="{BAR}" rx="2"/>',
        _text(LABELS + width + 8, y + BAR - 3, f"{value:,.1f}" if value >= 10 else f"{value:.3f}")])
