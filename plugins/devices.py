"""Offer the device files of devices/."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from edgeft.hookspecs import hookimpl


@hookimpl
def register_devices(register: Any) -> None:
    for path in sorted(Path(str(files("edgeft_devices"))).glob("*.toml")):
        register(path)
