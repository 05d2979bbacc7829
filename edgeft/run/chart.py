"""A bar chart as one SVG file: no script, no font, no other file; readable on light and on dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeft.contract.errors import EdgeftError
from edgeft.contract.svg import Panel, bars, element, text
from edgeft.contract.svg import title as name_of

WIDTH = 720
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


def chart(title: str, note: str, panels: Sequence[Panel], decimals: int | None = None) -> str:
    """The SVG text; bars of a panel share one scale, which starts at 0; numbers have so many decimals."""
    drawn, height = bars(panels, lambda label: "ours" if label.startswith("edgeft") else "theirs", width=WIDTH, top=64,
                         decimals=decimals)
    inside = [name_of(title), element("style", STYLE), element("rect", class_="ground", width=WIDTH, height=height),
              text(16, 28, title, "title"), text(16, 48, note), *drawn]
    return element("svg", *(f"\n  {part}" for part in inside), "\n", xmlns="http://www.w3.org/2000/svg", role="img",
                   viewBox=f"0 0 {WIDTH} {height:g}", width=WIDTH, height=height) + "\n"


def write_chart(path: Path, title: str, note: str, panels: Sequence[Panel],
                decimals: int | None = None) -> None:
    """Write the chart; EdgeftError where that cannot be."""
    try:
        path.write_text(chart(title, note, panels, decimals), encoding="utf-8")
    except OSError as error:
        raise EdgeftError(f"{path}: the chart cannot be written ({error.strerror}). Choose another place.") from None
