"""The page in Chromium, where it is installed."""

from __future__ import annotations

import html
import json
import random
import re
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from .pages import Page, page_of, write_run


def chromium(tmp_path: Path, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    return subprocess.run([program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                           f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", *options,
                           page.as_uri()], capture_output=True, text=True, timeout=120, check=False)


def pixels(path: Path) -> bytes:
    """The filtered rows of a PNG."""
    content, at, packed = path.read_bytes(), 8, b""
    while at < len(content):
        size = int.from_bytes(content[at : at + 4])
        if content[at + 4 : at + 8] == b"IDAT":
            packed += content[at + 8 : at + 8 + size]
        at += size + 12
    return zlib.decompress(packed)


def test_in_a_browser(runs: list[Path], tmp_path: Path) -> None:
    """Chromium renders it, says nothing on the console, and paints it light, dark and different from an empty page."""
    page, empty = tmp_path / "page.html", tmp_path / "empty.html"
    page.write_text(page_of(*runs))
    empty.write_text("<!DOCTYPE html><title>empty</title>")
    dumped = chromium(tmp_path, page, "--dump-dom")
    assert dumped.returncode == 0
    assert "CONSOLE" not in dumped.stderr
    assert dumped.stdout.count("<svg") == page.read_text().count("<svg")
    assert Page(dumped.stdout).faults == []
    shots = {}
    for name, shown, more in (("light", page, ()), ("dark", page, ("--blink-settings=preferredColorScheme=0",)),
                              ("empty", empty, ())):
        chromium(tmp_path, shown, "--window-size=900,1200", f"--screenshot={tmp_path / f'{name}.png'}", *more)
        shots[name] = pixels(tmp_path / f"{name}.png")
    assert len({len(shot) for shot in shots.values()}) == 1
    assert sum(byte != 0 for byte in shots["light"]) > 20 * sum(byte != 0 for byte in shots["empty"])
    assert shots["light"] != shots["dark"]


def test_the_browser_check_hears_the_console(tmp_path: Path) -> None:
    page = tmp_path / "noisy.html"
    page.write_text("<!DOCTYPE html><script>console.error('heard')</script>")
    assert "CONSOLE" in chromium(tmp_path, page, "--dump-dom").stderr


MEASURE = """<script>
const shown = [...document.querySelectorAll("svg[role=img]")].filter(svg => svg.getBoundingClientRect().width);
const names = shown.map(svg => [...svg.querySelectorAll("text.name")].map(text => text.getBoundingClientRect()));
const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;  // boxes hold the room above and below letters, too
document.title = JSON.stringify({
  names: names.map(boxes => boxes.length),
  overlaps: names.flatMap(boxes => boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b => meet(a, b)))).length,
  overflow: document.documentElement.scrollWidth - window.innerWidth});
</script>"""


def measured(tmp_path: Path, text: str, width: int) -> dict[str, Any]:
    """What a script, which the page itself would forbid, measures on it."""
    page = tmp_path / "measured.html"
    page.write_text(re.sub("<meta http-equiv[^>]*>", "", text).replace("</body>", f"{MEASURE}</body>"))
    dumped = chromium(tmp_path, page, f"--window-size={width},900", "--dump-dom").stdout
    return json.loads(html.unescape(dumped.partition("<title>")[2].partition("</title>")[0]))


@pytest.mark.parametrize("width", [390, 1280])
def test_names_keep_apart_as_a_browser_sets_them(tmp_path: Path, width: int) -> None:
    """Twelve runs close together, some with long names, on a phone and on a wide page, which nothing overflows."""
    chance = random.Random(5)
    made = [write_run(tmp_path / f"run-{'x' * chance.choice([0, 0, 3, 30])}{index}", chance.uniform(1, 1.3),
                      chance.uniform(0.1, 0.3)) for index in range(12)]
    text = page_of(*made)
    found = measured(tmp_path, text, width)
    assert found["names"] == [12, 12, 12, 12]  # training, evaluation, forgetting and the trade, each shown once
    assert found["overlaps"] == 0
    assert found["overflow"] <= 0
    cramped = re.sub('y="[0-9.]+" class="name', 'y="100" class="name', text)
    assert cramped != text
    assert measured(tmp_path, cramped, width)["overlaps"] > 0


def test_scripts_do_not_run_on_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    text = page_of(write_run(tmp_path / "run"))
    page.write_text(text.replace("</body>", "<script>document.title = 'ran'</script></body>"))
    done = chromium(tmp_path, page, "--dump-dom")
    assert "<title>ran" not in done.stdout
    assert "CONSOLE" in done.stderr
