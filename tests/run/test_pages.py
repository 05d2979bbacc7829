"""Pages of mapped files are given back, and come again when they are read."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import pytest

from edgeft.run.pages import let_go

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="smaps is Linux's")
SIZE = 1 << 20


def resident(path: Path) -> int:
    """KiB of a mapped file that this process holds."""
    text = Path("/proc/self/smaps").read_text().partition(f"{path}\n")[2]
    return int(text.partition("Rss:")[2].split()[0])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    with path.open("wb") as stream:
        stream.write(bytes(range(256)) * (SIZE // 256))
        os.fsync(stream.fileno())  # a page that is not yet on the disk counts as written to
    return path


def test_pages_that_were_read_go_and_come_again(file: Path) -> None:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        whole = bytes(view)
        assert resident(file) >= SIZE >> 10
        assert let_go(file.parent) >= SIZE
        assert resident(file) == 0
        assert bytes(view) == whole


def test_what_was_written_and_what_lies_elsewhere_stays(file: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A private page that was written to holds what no file has."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        view[5:10] = b"other"
        let_go(file.parent)
        assert view[5:10] == b"other"
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        bytes(view)
        let_go(tmp_path_factory.mktemp("elsewhere"))
        assert resident(file) >= SIZE >> 10
