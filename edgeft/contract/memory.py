"""How much memory this process takes, and has taken; and how the C library hands it out."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

ARENA_MAX = -8  # of mallopt, in glibc's malloc.h


def peak_mib() -> float:
    """Peak resident memory of this process in MiB; 0.0 where the system does not tell.

    From /proc where there is one: unlike ru_maxrss it does not start at the parent's.
    """
    try:
        return _status_mib("VmHWM")
    except OSError:
        try:
            import resource
        except ImportError:
            return 0.0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def rss_mib() -> float:
    """Resident memory of this process now, in MiB; its peak where the system does not tell."""
    try:
        return _status_mib("VmRSS")
    except OSError:
        return peak_mib()


def share_arena() -> None:
    """Let new threads take memory from one place, where this is glibc and its user has not said otherwise.

    Each would have an arena of its own, and what a long prompt took there is not free for another.
    """
    if "MALLOC_ARENA_MAX" in os.environ or "GLIBC_TUNABLES" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(ARENA_MAX, 1)  # another C library's, which does not know this one, says no


def _status_mib(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0
