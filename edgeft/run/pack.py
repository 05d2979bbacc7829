"""Pack a bundle, its base alone, or one of its adapters alone into one file; equal bundles make equal files.

The signatures that are there go along: the base's holds without adapters, too, and each adapter has its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from edgeft.contract.bundle import MANIFEST, Bundle, read_bundle
from edgeft.contract.container import PIECE, SUFFIX, check_names, write_end, write_member
from edgeft.contract.errors import EdgeftError, Faults, UsageError
from edgeft.contract.files import disk_errors, refuse_existing, scratch, sweep, sync_folder, sync_tree
from edgeft.contract.manifest import MAX_MANIFEST, sealed
from edgeft.contract.signature import signature_names, signatures_there

ADAPTER_MANIFEST = "adapter.json"
ADAPTER_FORMAT = 1
Files = Mapping[str, Mapping[str, Any]]  # name -> size and sha256


def pack(folder: Path, out: Path | None = None, *, adapter: str | None = None,
         without_adapters: bool = False) -> dict[str, Any]:
    """Write `out` and return what is in it; beside the bundle and named after it if not told otherwise.

    EdgeftError if a file is not as it was exported; then nothing is written.
    """
    if adapter and without_adapters:
        raise UsageError("--adapter packs one adapter alone, --without-adapters the base alone: choose one.")
    bundle = read_bundle(folder)
    part = f".{adapter}" if adapter else ".base" if without_adapters else ""
    out = out or folder.resolve().with_name(f"{folder.resolve().name}{part}{SUFFIX}")
    with disk_errors(out):
        sweep(out)  # killed right behind its rename it had left its stage beside the whole file
    refuse_existing(out)
    if adapter:
        name, manifest = ADAPTER_MANIFEST, encode(adapter_manifest(bundle, adapter))
        files: Files = {file: bundle.manifest["files"][file] for file in [bundle.adapters[adapter]]}
    else:
        base = without(bundle.manifest) if without_adapters else bundle.manifest
        name, manifest, files = MANIFEST, encode_bundle(base), base["files"]
    signed = signatures_there(bundle.folder, signature_names(files, bundle=name == MANIFEST))
    _check(bundle, {name: manifest, **signed}, files)
    with scratch(out) as stage:
        with (stage / out.name).open("wb") as stream:
            _write(stream, bundle, {name: manifest, **signed}, files)
        sync_tree(stage)
        with disk_errors(out):
            (stage / out.name).rename(out)
            sync_folder(out.parent)
    return {"file": str(out), "bytes": out.stat().st_size, "holds": "adapter" if adapter else "bundle",
            "base": bundle.fingerprint, "adapters": [adapter] if adapter else sorted(base["adapters"]),
            "files": len(files) + 1, "signatures": list(signed)}


def encode(manifest: Mapping[str, Any]) -> bytes:
    """An adapter's manifest, for people too."""
    return (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()


def encode_bundle(manifest: Mapping[str, Any]) -> bytes:
    """bundle.json as `export` and `add` write it, ending in its digest."""
    return sealed(json.dumps(manifest, indent=2, ensure_ascii=False)).encode()


def without(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A bundle's manifest as it is without any adapter."""
    parity = manifest.get("parity", {})
    return {**manifest, "adapters": {}, "default_adapter": None,
            "files": {name: entry for name, entry in manifest["files"].items() if not name.startswith("adapters/")},
            "parity": {**parity, "adapters": {},
                       "replay": [item for item in parity.get("replay", []) if not item["adapters"]]}}


def adapter_manifest(bundle: Bundle, name: str) -> dict[str, Any]:
    """All that a bundle knows about one adapter: whose it is, its entry, its proof, and its file's digest."""
    file = bundle.adapter_file(name).relative_to(bundle.folder).as_posix()
    manifest, parity = bundle.manifest, bundle.manifest["parity"]
    return {"format": ADAPTER_FORMAT, "name": name,
            "base": {"fingerprint": bundle.fingerprint, "id": manifest["base"].get("id")},
            "quant": manifest["quant"], "adapter": manifest["adapters"][name],
            "parity": parity.get("adapters", {}).get(name, {}),
            "replay": [item for item in parity.get("replay", []) if set(item["adapters"]) == {name}],
            "files": {file: manifest["files"][file]}}


def _check(bundle: Bundle, first: Mapping[str, bytes], files: Files) -> None:
    """What a reader would refuse is not written. `first`: the manifest and the signatures."""
    bundle.check_files(whole=False)
    faults = Faults(f"{bundle.folder}: cannot be packed")
    check_names([*first, *files], faults)
    name, *signed = first
    for what, size in ((name, len(first[name])), ("all signatures", sum(len(first[each]) for each in signed))):
        if size > MAX_MANIFEST:
            faults.add(f"{what}: {size} bytes; at most {MAX_MANIFEST} are read")
    faults.raise_if_any()


def _write(stream: IO[bytes], bundle: Bundle, first: Mapping[str, bytes], files: Files) -> None:
    faults = Faults(f"{bundle.folder}: is not as it was exported")
    for name, data in first.items():
        write_member(stream, name, len(data), [data])
    for file in sorted(files):
        digest = hashlib.sha256()
        write_member(stream, file, files[file]["size"], _pieces(bundle.folder / file, digest))
        if digest.hexdigest() != files[file]["sha256"]:
            faults.add(file, declared=f"sha256 {files[file]['sha256'][:12]}", found=digest.hexdigest()[:12])
    faults.raise_if_any("Copy it again, or export it again.")
    write_end(stream)


def _pieces(path: Path, digest: Any) -> Iterator[bytes]:
    """A file's bytes, all of which go into the digest."""
    try:
        with path.open("rb") as source:
            while piece := source.read(PIECE):
                digest.update(piece)
                yield piece
    except FileNotFoundError:
        raise EdgeftError(f"{path}: is missing. Copy the bundle again, or export it again.") from None


def describe(result: dict[str, Any]) -> str:
    """The result for a person."""
    what = "one adapter" if result["holds"] == "adapter" else "a bundle"
    names = ", ".join(result["adapters"]) or "none"
    return (f"{result['file']}: {what}, {result['files']} files, {result['bytes'] / 2**20:.1f} MiB\n"
            f"  base        {result['base'][:12]}\n  adapters    {names}\n  signatures  {len(result['signatures'])}")
