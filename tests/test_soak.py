"""The soak test, short: every kind of hostile request among good ones, on the real small model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROGRAM = Path(__file__).resolve().parents[1] / "benchmarks" / "soak.py"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module."""
    import importlib

    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    return importlib.import_module("soak")


@pytest.mark.slow
def test_a_short_soak_has_no_wrong_answer_and_leaks_nothing(shared: Path) -> None:
    done = subprocess.run([sys.executable, PROGRAM, "--requests", "400", "--adapters", "8", "--json"],
                          capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)  # memory is judged over 20,000 requests: of 400, caches that fill are a part
    assert (found["wrong"], found["astray"], found["leaked"]) == (0, 0, 0), done.stderr
    assert found["hostile"] >= found["kinds"] == 15
    assert found["distinct"] > 0.9


GOOD: dict[str, Any] = {"distinct": 1.0, "wrong": 0, "astray": 0, "kinds": 15, "first_mib": 100.0, "last_mib": 104.0,
                        "leaked": 0}


@pytest.mark.parametrize("change", [{"wrong": 1}, {"astray": 1}, {"last_mib": 106.0}, {"last_mib": 94.0}, {"leaked": 1},
                                    {"leaked": -1}, {"kinds": 14}, {"distinct": 0.5}])
def test_whatever_is_not_as_it_must_be_is_found(program: ModuleType, change: dict[str, Any]) -> None:
    assert all(good for *_, good in program.checks(GOOD))
    assert not all(good for *_, good in program.checks({**GOOD, **change}))


def test_another_adapters_answer_is_wrong_and_an_error_is_astray(program: ModuleType) -> None:
    """The judge itself, without a model."""
    from collections import Counter

    from hostile import Hostile  # type: ignore[import-not-found]

    soak = program.Soak.__new__(program.Soak)
    soak.own, soak.counts = {"a": [[1, 2, 3]], "b": [[4, 5, 6]]}, Counter()
    soak.hostile = Hostile(None, None, {})
    for kind, found, counted in [("", [1, 2, 3], {}), ("", [4, 5, 6], {"wrong": 1}), ("", [1, 2], {"wrong": 1}),
                                 ("", ValueError(), {"astray": 1}), ("timeout", [1, 2], {}), ("cancelled", [], {}),
                                 ("timeout", [2], {"wrong": 1}), ("nan", [1, 2, 3], {"astray": 1}),
                                 ("nan", ValueError("NaN"), {"astray": 1})]:
        soak.counts.clear()
        soak.judge((kind, "a", 0, {}), found)
        assert +soak.counts == counted, (kind, found)
