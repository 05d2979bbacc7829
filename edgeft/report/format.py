"""Numbers as the page shows them; what is not known is a dash."""

from __future__ import annotations

DASH = "\u2013"
MINUS = "\u2212"


def fixed(value: float | None, digits: int = 3) -> str:
    """So many digits behind the point, more for a small number that would be lost."""
    if value is None:
        return DASH
    if value and abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}".replace("e-0", "e-").replace("-", MINUS)
    return f"{value:,.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 3) -> str:
    """A change: with its sign."""
    if value is None:
        return DASH
    return f"+{fixed(value, digits)}" if value >= 0 else fixed(value, digits)


def between(interval: tuple[float, float] | None, digits: int = 3) -> str:
    """An interval of changes; empty where there is none."""
    return f"[{signed(interval[0], digits)}, {signed(interval[1], digits)}]" if interval else ""


def count(value: float | None) -> str:
    """A whole number."""
    return DASH if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share."""
    return DASH if value is None else f"{100 * value:.1f} %".replace("-", MINUS)


def compact(value: float | None) -> str:
    """A count in three digits: 46.2 k, 1.10 M."""
    if value is None:
        return DASH
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {name}" if value / size < 1000 else f"{value / size:,.0f} {name}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours."""
    if seconds is None:
        return DASH
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 6000:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600):,} h {int(seconds % 3600 // 60):02d} min"


def mib(size: float | None) -> str:
    """Bytes as MiB."""
    if size is None:
        return DASH
    return f"{size / 2**20:,.{1 if size >= 2**20 else 3}f}"


def scientific(value: float | None) -> str:
    """A small difference."""
    return DASH if value is None else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("-", MINUS)
