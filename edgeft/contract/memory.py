"""How much memory this process takes, and has taken."""

from __future__ import annotations

import re
from pathlib import Path


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


def _status_mib(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0
