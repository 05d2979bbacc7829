"""Mapped files count as resident once they were read: weights and code that only opening needed. Give that back."""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

SMAPS = Path("/proc/self/smaps")
HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+\s*(.*)$")


def let_go(folder: Path | None = None) -> int:
    """Drop this process's pages of files mapped from `folder`, or of all files; returns bytes.

    They are mapped again, from the system's own cache, when they are next read. Only mappings that nobody wrote to: the
    file still has all that they hold. Elsewhere than on Linux nothing happens.
    """
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is None or not SMAPS.exists():
        return 0
    libc, inside, dropped = ctypes.CDLL(None, use_errno=True), f"{folder.resolve()}/" if folder else "/", 0
    for start, stop, path, fields in _mappings():
        written = fields.get("Private_Dirty") or fields.get("Shared_Dirty")
        if written or not fields.get("Rss") or not path.startswith(inside) or path.startswith("/dev/"):
            continue
        if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), advice) == 0:
            dropped += fields["Rss"] << 10
    return dropped


def _mappings() -> Iterator[tuple[int, int, str, dict[str, int]]]:
    """(start, stop, path, sizes in KiB) of each mapping of this process."""
    head, fields = None, dict[str, int]()
    for line in SMAPS.read_text().splitlines():
        found = HEAD.match(line)
        if found:
            if head:
                yield int(head[1], 16), int(head[2], 16), head[4], fields
            head, fields = found, {}
        elif line.endswith(" kB"):
            name, _, size = line.partition(":")
            fields[name] = int(size.split()[0])
    if head:
        yield int(head[1], 16), int(head[2], 16), head[4], fields
