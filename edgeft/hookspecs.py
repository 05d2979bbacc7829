"""Every hook of edgeft. Hooks only register; objects act. Their order means nothing.

A plugin is an installed module named in the entry-point group `edgeft`:

    [project.entry-points.edgeft]
    bitfit = "edgeft_bitfit"
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click

    from edgeft.contract import Method

hookspec = pluggy.HookspecMarker("edgeft")
hookimpl = pluggy.HookimplMarker("edgeft")


@hookspec
def register_methods(register: Callable[[Method[Any]], None]) -> None:
    """Offer fine-tuning methods: call register(method) once per method."""


@hookspec
def register_devices(register: Callable[[Path], None]) -> None:
    """Offer device files: call register(path) once per TOML file."""


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to `edgeft`."""
