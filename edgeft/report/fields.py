"""JSON from a folder, read with care: runs come from anywhere, and old ones have fewer keys."""

from __future__ import annotations

import math
from typing import Any

from edgeft.contract.errors import EdgeftError

LARGEST = 10**18  # of any number: beyond it no axis can be drawn


class Fields:
    """A JSON object. What is absent or null is None or empty; what is of another type is an error that says where."""

    def __init__(self, where: str, value: dict[str, Any]) -> None:
        self.where, self.value = where, value

    def __bool__(self) -> bool:
        return bool(self.value)

    def __contains__(self, key: str) -> bool:
        return self.value.get(key) is not None

    def number(self, key: str) -> float | None:
        """A finite number."""
        value = self.value.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._fault(key, "a number", value)
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if abs(value) > LARGEST:
            raise self._fault(key, f"at most {LARGEST:g}", value)
        return value

    def text(self, key: str) -> str:
        """Text."""
        value = self.value.get(key)
        if value is not None and not isinstance(value, str):
            raise self._fault(key, "text", value)
        return value or ""

    def flag(self, key: str) -> bool:
        """Whether it is true."""
        return self.value.get(key) is True

    def words(self, key: str) -> dict[str, str]:
        """An object of texts."""
        within = self.inside(key)
        return {name: within.text(name) for name in within.value}

    def texts(self, key: str) -> list[str]:
        """A list of texts."""
        items = self._list(key)
        if not all(isinstance(item, str) for item in items):
            raise self._fault(key, "a list of texts", items)
        return items

    def interval(self, key: str) -> tuple[float, float] | None:
        """Two numbers, low and high."""
        items = self._list(key)
        if not items:
            return None
        if len(items) != 2:
            raise self._fault(key, "two numbers", items)
        pair = Fields(self.where, {f"{key}[{index}]": item for index, item in enumerate(items)})
        low, high = pair.number(f"{key}[0]"), pair.number(f"{key}[1]")
        return None if low is None or high is None else (low, high)

    def inside(self, key: str) -> Fields:
        """An object."""
        value = self.value.get(key)
        if value is not None and not isinstance(value, dict):
            raise self._fault(key, "an object", value)
        return Fields(f"{self.where}{'.' if ':' in self.where else ': '}{key}", value or {})

    def rows(self, key: str) -> list[Fields]:
        """A list of objects."""
        items = self._list(key)
        if not all(isinstance(item, dict) for item in items):
            raise self._fault(key, "a list of objects", items)
        return [Fields(f"{self.where}: {key}[{index}]", item) for index, item in enumerate(items)]

    def named(self, key: str) -> dict[str, Fields]:
        """An object that holds objects."""
        within = self.inside(key)
        return {name: within.inside(name) for name in within.value}

    def _list(self, key: str) -> list[Any]:
        value = self.value.get(key)
        if value is not None and not isinstance(value, list):
            raise self._fault(key, "a list", value)
        return value or []

    def _fault(self, key: str, wanted: str, found: Any) -> EdgeftError:
        return EdgeftError(f"{self.where}: {key} must be {wanted}, found {str(found)[:60]!r}. The file is damaged, or "
                           "made by something else.")
