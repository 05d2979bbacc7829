"""The page in Chromium, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

from .pages import Page, page_of


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
