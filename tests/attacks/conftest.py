"""A good bundle, and a process that watches what becomes of bad ones."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .forge import copied
from .watch import Watcher

MOST_MIB = 64  # that a refusal may allocate
Refusal = Callable[..., str]


@pytest.fixture(scope="session")
def watcher() -> Iterator[Watcher]:
    if sys.platform != "linux":
        pytest.skip("watches through /proc, which is Linux's")
    made = Watcher()
    yield made
    made.close()


@pytest.fixture
def mine(bundle: Path, tmp_path: Path) -> Path:
    """A copy of a good bundle."""
    return copied(bundle, tmp_path / "bundle")


@pytest.fixture
def refused(watcher: Watcher) -> Refusal:
    """Assert that loading is refused for a reason, with nothing else opened and little allocated."""

    def check(kind: str, path: Path, reason: str, *, sessions: int = 0, **more: object) -> str:
        found = watcher(kind, path, **more)
        assert "refused" in found, found
        assert re.search(reason, found["refused"]), found["refused"]
        assert not found["outside"], found
        assert found["sessions"] <= sessions, found
        assert found["grown_mib"] <= MOST_MIB, found
        return str(found["refused"])

    return check
