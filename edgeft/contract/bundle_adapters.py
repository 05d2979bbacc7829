"""Adapters put into a bundle, the file before the manifest, and taken out, the manifest before the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .bundle import read_bundle
from .files import disk_errors, locked, sync_folder, sync_tree
from .manifest import NAME, read_manifest, write_manifest
from .signature import SUFFIX


def put_adapter(folder: Path, stage: Path, file: str, manifest: dict[str, Any]) -> None:
    """Move a finished adapter into a bundle, then tell its manifest: a file that is in no list is never read."""
    sync_tree(stage / "adapters")
    with disk_errors(folder):
        (folder / "adapters").mkdir(exist_ok=True)
        os.replace(stage / file, folder / file)
        try:
            sync_folder(folder / "adapters")
            write_manifest(folder, manifest)
        except BaseException:
            if file not in read_manifest(folder)["files"]:  # an interrupt may come when the manifest is there
                _delete(folder / file)
            raise
        sync_folder(folder)


def remove_adapter(folder: Path, name: str) -> None:
    """Take an adapter out: first out of the manifest, then off the disk."""
    read_bundle(folder)  # before anything is locked: it may be no bundle
    with locked(folder):
        _remove_adapter(folder, name)


def _remove_adapter(folder: Path, name: str) -> None:
    bundle = read_bundle(folder)
    if name not in bundle.adapters and NAME.fullmatch(name) and _delete(folder / f"adapters/{name}.safetensors"):
        return  # a killed `add` or `remove` had left the file, which is in no list
    bundle.adapter_file(name)  # there must be one
    bundle.path(bundle.adapters[name])
    manifest = dict(bundle.manifest)
    twin = f"adapters/{name}.onnx_adapter"  # for ONNX Runtime GenAI, if it was written
    gone = {bundle.adapters[name], *({twin} if twin in manifest["files"] else ())}
    manifest["adapters"] = {key: entry for key, entry in manifest["adapters"].items() if key != name}
    manifest["files"] = {key: entry for key, entry in manifest["files"].items() if key not in gone}
    parity = manifest.get("parity", {})
    manifest["parity"] = {
        **parity, "adapters": {key: entry for key, entry in parity.get("adapters", {}).items() if key != name},
        "replay": [item for item in parity.get("replay", []) if name not in item["adapters"]]}
    if manifest.get("default_adapter") == name:
        manifest["default_adapter"] = None
    with disk_errors(folder):
        write_manifest(bundle.folder, manifest)
    for file in gone:
        _delete(bundle.folder / file)


def _delete(path: Path) -> bool:
    """Take an adapter's file and its signature off the disk; whether there was any."""
    found = [item for item in (path, path.with_name(path.name + SUFFIX)) if os.path.lexists(item)]
    with disk_errors(path):
        for item in found:
            item.unlink()
    return bool(found)
