"""What an attacker writes: a good bundle, changed, with a manifest that agrees with the change."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeft.contract.bundle import GRAPH_DATA, MANIFEST, describe_file
from edgeft.contract.manifest import write_manifest

GRAPHS = ("model.onnx", "model.plain.onnx")


def copied(bundle: Path, to: Path) -> Path:
    """A bundle of one's own to break."""
    shutil.copytree(bundle, to)
    return to


def manifest_of(bundle: Path) -> dict[str, Any]:
    """What bundle.json says."""
    return dict(json.loads((bundle / MANIFEST).read_text()))


def say(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, digest and all."""
    manifest = manifest_of(bundle)
    edit(manifest)
    write_manifest(bundle, manifest)


def agree(bundle: Path, *names: str) -> None:
    """Let the manifest tell the size and the digest that these files have now."""
    say(bundle, lambda manifest: manifest["files"].update({name: describe_file(bundle / name) for name in names}))


def put(bundle: Path, name: str, data: bytes) -> None:
    """Write a file of the bundle and let the manifest agree."""
    (bundle / name).write_bytes(data)
    agree(bundle, name)


def sparse(path: Path, size: int) -> None:
    """A file of zeros that takes no room."""
    with path.open("wb") as stream:
        stream.truncate(size)


def change_graphs(bundle: Path, edit: Callable[[Any], Any]) -> None:
    """Change every graph that could be opened first; `edit` gets an onnx.ModelProto."""
    import onnx

    for name in GRAPHS:
        if (bundle / name).is_file():
            model = onnx.load(str(bundle / name), load_external_data=False)
            changed = edit(model)
            put(bundle, name, changed if isinstance(changed, bytes) else model.SerializeToString())


def an_external(model: Any) -> Any:
    """A tensor of the graph that lies in the bundle's data file."""
    return next(tensor for tensor in model.graph.initializer if tensor.external_data)


def entries(tensor: Any, **values: str | None) -> None:
    """Set or take away keys of a tensor's external data."""
    kept = {item.key: item.value for item in tensor.external_data}
    kept.update({key: value for key, value in values.items() if value is not None})
    del tensor.external_data[:]
    for key, value in kept.items():
        if key not in values or values[key] is not None:
            tensor.external_data.add(key=key, value=value)


def stranger(location: str, name: str = "stranger", size: int = 4) -> Any:
    """A tensor whose bytes are said to lie somewhere else."""
    from onnx import TensorProto

    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[size], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def link(path: Path, target: Path, *, hard: bool) -> None:
    """Put a link in a file's place."""
    path.unlink()
    if hard:
        os.link(target, path)
    else:
        path.symlink_to(target)


__all__ = [
    "GRAPHS",
    "GRAPH_DATA",
    "MANIFEST",
    "agree",
    "an_external",
    "change_graphs",
    "copied",
    "entries",
    "link",
    "manifest_of",
    "put",
    "say",
    "sparse",
    "stranger",
]
