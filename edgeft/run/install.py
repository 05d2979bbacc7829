"""Put a bundle in its place: verified, prepared for this very machine, and switched in one step."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from edgeft.contract.bundle import MANIFEST, Bundle, check_runnable, read_bundle
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.files import disk_errors, locked, scratch, sweep, sync_tree
from edgeft.contract.signature import signature_names, signatures_there

from .prepare import prepare
from .prepared import PREPARED, Prepared, can_prepare, machine, read_prepared
from .rollback import previous_of, switch
from .trust import ANYTHING, Trust, check_arrival, remember
from .unpack import opened, read_manifest, unpack
from .verify import verify


def install(source: Path, to: Path | None = None, trust: Trust = ANYTHING) -> dict[str, Any]:
    """Verify a bundle and prepare its weights, at `to` if given; what stood there is kept as `to`.previous.

    A packed file goes to a folder beside it unless told otherwise. Killed at any moment it leaves the old or the new.
    EdgeftError if a file is not as exported, the prepared graphs compute something else, the recorded answers do not
    come again, or the place does not trust it; then nothing has changed.
    """
    started = time.perf_counter()
    if source.is_file():
        to = to or source.with_suffix("")
    place = to or source
    already = _install_file(source, place, trust) if source.is_file() else _install_folder(source, to, trust)
    bundle = read_bundle(place)
    prepared = read_prepared(bundle) if can_prepare(bundle) else None
    return _report(bundle, prepared, already, time.perf_counter() - started)


def _install_folder(folder: Path, to: Path | None, trust: Trust) -> bool:
    """Whether it was done already."""
    place = to or folder
    bundle = _verified(folder)
    check_arrival(bundle, place, trust)
    with _alone(place, to):
        for name in (folder / PREPARED, *([to] if to is not None else [])):
            with disk_errors(name):
                sweep(name)  # what a killed one left takes as much room as the weights
        already = to is None or _is_there(bundle.manifest, to, _signatures(bundle))
        if already:
            already = _make_ready(_verified(place))
        else:
            assert to is not None
            source, target = folder.resolve(), to.resolve()
            if target.is_relative_to(source) or source.is_relative_to(target):
                raise UsageError(f"--to {to}: lies within the bundle, or the bundle within it. Choose another place.")
            _replace(to, lambda stage: _copy(bundle, stage), str(folder), trust)
        _remember(place, trust)
    return already


def _install_file(file: Path, to: Path, trust: Trust) -> bool:
    """Whether it was done already."""
    with opened(file) as reader:
        if reader.name != MANIFEST:
            raise UsageError(f"{file}: holds one adapter alone. Name the folder of its base with --to.")
        manifest = read_manifest(reader)
        with _alone(to, to):
            with disk_errors(to):
                sweep(to)
            if _is_there(manifest, to, reader.beside):
                check_arrival(read_bundle(to), to, trust)
                already = _make_ready(_verified(to))
            else:
                _replace(to, lambda stage: unpack(reader, manifest, stage), str(file), trust)
                already = False
            _remember(to, trust)
    return already


def _remember(place: Path, trust: Trust) -> None:
    with disk_errors(place):
        remember(place, trust)


@contextmanager
def _alone(place: Path, to: Path | None) -> Iterator[None]:
    """No other process changes the place, or puts another bundle there."""
    with ExitStack() as locks:
        if to is not None:
            with disk_errors(to):
                to.parent.mkdir(parents=True, exist_ok=True)
            locks.enter_context(locked(to.parent))
        if place.is_dir():
            locks.enter_context(locked(place))
        yield


def remove_prepared(folder: Path) -> bool:
    """Take prepared weights away again; whether there were any."""
    final = read_bundle(folder).folder / PREPARED
    if not os.path.lexists(final):
        return False
    with scratch(final) as stage:  # renamed into it first: a half-deleted folder never stands under the name
        final.rename(stage / PREPARED)
    return True


def _verified(folder: Path) -> Bundle:
    bundle = read_bundle(folder)
    check_runnable(bundle)
    bundle.check_files(whole=True)
    return bundle


def _make_ready(bundle: Bundle) -> bool:
    """Prepare the bundle where it stands, unless that is done; whether it was."""
    if not can_prepare(bundle):
        return False
    try:
        prepared = read_prepared(bundle)
        if prepared is not None:
            prepared.check_whole()
            return True
    except EdgeftError:
        pass  # stale or damaged: it is made again, and what is wrong with it goes with it
    prepare(bundle)
    try:
        verify(bundle.folder)
    except EdgeftError:
        remove_prepared(bundle.folder)
        raise
    return False


def _is_there(manifest: dict[str, Any], to: Path, signatures: dict[str, bytes]) -> bool:
    """Whether this very bundle stands at `to` already, every file of it as exported."""
    try:
        other = read_bundle(to)
        other.check_files(whole=True)
    except EdgeftError:
        return False
    return other.manifest == manifest and _signatures(other) == signatures


def _refuse_target(to: Path) -> None:
    for path in (to, previous_of(to)):
        if os.path.lexists(path) and not (path / MANIFEST).is_file():
            raise UsageError(f"{path}: is there and is no bundle, so it is left alone. Choose another place, or remove "
                             "it first.")


def _copy(bundle: Bundle, stage: Path) -> None:
    for name in (MANIFEST, *bundle.manifest["files"]):
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, stage / name)
    for name, data in _signatures(bundle).items():
        (stage / name).write_bytes(data)


@contextmanager
def _told_of(stage: Path, source: str) -> Iterator[None]:
    """What is said of a stage is said of where it came from, or will stand."""
    try:
        yield
    except EdgeftError as error:
        raise type(error)(str(error).replace(str(stage), source)) from None


def _replace(to: Path, fill: Callable[[Path], None], source: str, trust: Trust) -> None:
    """Put the bundle beside `to`, check and prepare it there, and only then let it take the name."""
    _refuse_target(to)
    with scratch(to) as stage:
        with _told_of(stage, source):
            fill(stage)
            copy = _verified(stage)
            check_arrival(copy, to, trust)  # of the very bytes that will stand there
        with _told_of(stage, str(to)):
            if can_prepare(copy):
                prepare(copy)
            sync_tree(stage)
            switch(stage, to)


def _signatures(bundle: Bundle) -> dict[str, bytes]:
    """The signatures that there are, by file; they are in no list of files."""
    return signatures_there(bundle.folder, signature_names(bundle.manifest["files"], bundle=True))


def _report(bundle: Bundle, prepared: Prepared | None, already: bool, seconds: float) -> dict[str, Any]:
    files = prepared.files if prepared is not None else {}
    return {"folder": str(bundle.folder), "prepared": prepared is not None, "already": already,
            "graphs": sorted(name for name in files if name.endswith(".onnx")),
            "bytes": sum(entry["size"] for entry in files.values()), "seconds": round(seconds, 2),
            "machine": machine()}


def describe(result: dict[str, Any]) -> str:
    """The report for a person."""
    if not result["prepared"]:
        return f"{result['folder']}: every digest as recorded; its device's provider prepares weights by itself"
    cpu = result["machine"]
    done = "was prepared already" if result["already"] else f"prepared in {result['seconds']:.1f} s"
    return (f"{result['folder']}: every digest as recorded, {done}\n"
            f"  graphs   {', '.join(result['graphs'])}\n"
            f"  weights  {result['bytes'] / 2**20:.1f} MiB on disk, mapped and shared by processes\n"
            f"  machine  {cpu['cpu']}, {cpu['arch']}, onnxruntime {cpu['onnxruntime']}")
