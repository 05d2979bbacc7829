"""Runs written by hand: of no training, so that a test says what is in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from .pages import write_comparison, write_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three runs: one on the front for its loss, one for its forgetting, one beaten in both."""
    made = [write_run(tmp_path / "sharp", 0.9, 0.5), write_run(tmp_path / "gentle", 1.5, 0.02),
            write_run(tmp_path / "beaten", 1.6, 0.6)]
    write_comparison(made[0])
    return made
