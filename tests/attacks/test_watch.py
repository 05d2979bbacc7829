"""The watcher sees what it must see, and a good bundle passes."""

from __future__ import annotations

from pathlib import Path

from .watch import Watcher


def test_a_good_bundle_loads_and_opens_nothing_else(mine: Path, watcher: Watcher) -> None:
    found = watcher("load", mine)
    assert "answer" in found, found
    assert not found["outside"]
    assert found["sessions"] == 1
    assert "answer" in watcher("load", mine, adapters={"colors": 1.0})


def test_a_spy_is_caught(tmp_path: Path, watcher: Watcher) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "own").mkdir()
    found = watcher("spy", tmp_path / "own" / "x", secret=str(tmp_path / "secret"), mib=80)
    assert found["outside"] == [f"open {tmp_path / 'secret'}"]
    assert 75 < found["grown_mib"] < 100
