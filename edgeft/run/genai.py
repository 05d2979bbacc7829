"""Adapters as ONNX Runtime GenAI loads them: `.onnx_adapter` files beside a bundle's own, made without torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeft.contract.bundle import Bundle, describe_file, read_bundle, write_manifest
from edgeft.contract.errors import UsageError
from edgeft.contract.files import disk_errors, locked, scratch, sync_tree
from edgeft.contract.signature import refuse_if_signed_only

from .adapters import Adapter, open_adapter
from .packing import gate, scales, side_by_side

SUFFIX = ".onnx_adapter"
FORMAT_VERSION = 1  # of the adapter and of the model that it is for: numbers that only their maker reads


def write_genai_adapters(folder: Path) -> dict[str, Any]:
    """Write adapters/NAME.onnx_adapter for every adapter that GenAI can take, into the bundle's list of files.

    Returns {"written": {name: bytes}, "left_out": {name: reason}}. Files of an earlier call are made anew.
    """
    read_bundle(folder)  # before anything is locked: it may be no bundle
    refuse_if_signed_only(folder, "a file for ONNX Runtime GenAI that is made")
    with locked(folder):
        return _write(folder)


def _write(folder: Path) -> dict[str, Any]:
    bundle = read_bundle(folder)
    _check(bundle)
    bundle.check_files(whole=True)
    adapters = {name: open_adapter(name, bundle.adapter_file(name), bundle) for name in bundle.adapters}
    left_out = {name: reason for name, adapter in adapters.items() if (reason := _lacks(adapter))}
    manifest = {**bundle.manifest, "files": dict(bundle.manifest["files"])}
    written = {}
    with scratch(bundle.folder) as stage:
        for name in sorted(adapters.keys() - left_out.keys()):
            adapters[name].checked.result()
            made = stage / f"{name}{SUFFIX}"
            export_adapter(bundle, adapters[name], made)
            manifest["files"][f"adapters/{made.name}"] = describe_file(made)
            written[name] = made.stat().st_size
        sync_tree(stage)
        with disk_errors(bundle.folder):
            for made in sorted(stage.iterdir()):
                os.replace(made, bundle.folder / "adapters" / made.name)
            write_manifest(bundle.folder, manifest)
    return {"written": written, "left_out": left_out}


def _check(bundle: Bundle) -> None:
    if bundle.manifest.get("task", "text-generation") != "text-generation":
        raise UsageError(f"{bundle.folder}: classifies or embeds, and ONNX Runtime GenAI generates text.")
    if not bundle.adapters:
        raise UsageError(f"{bundle.folder}: has no adapter; ONNX Runtime GenAI opens it as it is.")


def _lacks(adapter: Adapter) -> str:
    """Why GenAI cannot take an adapter; empty if it can."""
    return "a soft prompt: ONNX Runtime GenAI has no way to begin with given keys and values" if adapter.soft else ""


def export_adapter(bundle: Bundle, adapter: Adapter, path: Path) -> None:
    """One adapter at scale 1 as the inputs of the contract's graph (for factors: of the scaled graph)."""
    values: dict[str, np.ndarray[Any, Any]] = {}
    row = {adapter.name: 1.0}
    if adapter.rank:
        values |= {**side_by_side(bundle.slots, [adapter]), "adapter_gate": gate([adapter], [row])}
    if adapter.scaled:
        values |= scales(bundle.scales, [adapter], [row])
    held = {name: np.ascontiguousarray(array, np.float32) for name, array in values.items()}
    file = ort.AdapterFormat()
    file.set_adapter_version(FORMAT_VERSION)
    file.set_model_version(FORMAT_VERSION)
    file.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in held.items()})
    file.export_adapter(str(path))


def describe(folder: Path, report: dict[str, Any]) -> str:
    """For a person."""
    lines = [f"{folder}: opens in ONNX Runtime GenAI as it is; adapters for it:"]
    lines += [f"  adapters/{name}{SUFFIX}  {size:,} bytes" for name, size in report["written"].items()]
    lines += [f"  {name}: not written, {reason}" for name, reason in report["left_out"].items()]
    return "\n".join(lines)
