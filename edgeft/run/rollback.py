"""A new version takes its place only if it answers as recorded there, and the one before stays at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edgeft.contract.bundle import MANIFEST, read_bundle
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.files import disk_errors, exchange, locked, sweep, sync_folder
from edgeft.contract.signature import read_policy

from .signing import check_bundle
from .verify import verify


def previous_of(place: Path) -> Path:
    """Where the version before the installed one stands."""
    return place.with_name(f"{place.name}.previous")


def switch(stage: Path, place: Path) -> None:
    """Let a finished bundle take a place; what stood there becomes the previous one.

    Both before and after the switch it must give the answers recorded at export; EdgeftError if it does not, and then
    everything is as it was. The stage may be gone, or hold what is to be thrown away.
    """
    verify(stage)
    if not os.path.lexists(place):
        stage.rename(place)
        try:
            sync_folder(place.parent)
            verify(place)
        except BaseException:
            place.rename(stage)
            raise
        return
    previous = previous_of(place)
    _trade(stage, previous)
    try:
        _swap(previous, place)
    except BaseException:
        _trade(previous, stage)
        sync_folder(place.parent)
        raise


def rollback(place: Path) -> dict[str, Any]:
    """Put the previous version back, and keep the one that makes way as the previous one."""
    previous = previous_of(place)
    if not place.parent.is_dir():
        raise UsageError(f"{place}: there is no such bundle.")
    with locked(place.parent), disk_errors(place):
        sweep(place)
        if not (previous / MANIFEST).is_file():
            raise UsageError(f"{place}: has no previous version ({previous.name}).")
        bundle, policy = read_bundle(previous), read_policy(place)
        if policy:
            check_bundle(bundle, policy.keys)
        verify(previous)
        if os.path.lexists(place):
            with locked(place):
                _swap(previous, place)
        else:
            previous.rename(place)
            sync_folder(place.parent)
    return {"folder": str(place), "version": bundle.version, "made": bundle.manifest.get("provenance", {}).get("made")}


def _swap(previous: Path, place: Path) -> None:
    """Exchange the two, and back again if the one that came does not answer as recorded."""
    exchange(previous, place)
    try:
        sync_folder(place.parent)
        verify(place)
    except BaseException as error:
        exchange(previous, place)
        sync_folder(place.parent)
        if isinstance(error, EdgeftError):
            raise EdgeftError(f"{error}\n{place}: the version before is back in its place.") from None
        raise


def _trade(stage: Path, other: Path) -> None:
    """Give a folder another's name, and the other one, if there is one, the folder's."""
    if other.exists():
        exchange(stage, other)
    else:
        stage.rename(other)
