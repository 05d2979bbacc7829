"""What `edgeft pack` wrote, opened: a bundle's files into a stage, or one adapter's manifest, checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeft.contract.bundle import MANIFEST, NAME
from edgeft.contract.container import Reader
from edgeft.contract.errors import Faults, UsageError
from edgeft.contract.manifest import DIGEST
from edgeft.contract.opening import parse_json
from edgeft.contract.signature import LARGEST, signature_names

from .pack import ADAPTER_FORMAT, ADAPTER_MANIFEST
from .prepared import PREPARED

MAX_ROWS, MAX_TOKENS = 256, 4096  # of recorded answers that a stranger may make this machine compute


@contextmanager
def opened(file: Path) -> Iterator[Reader]:
    """A packed file, its manifest read; EdgeftError if it is something else."""
    try:
        stream = file.open("rb")
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror}).") from None
    with stream:
        yield Reader(file, stream, (MANIFEST, ADAPTER_MANIFEST))


def holds_adapter(file: Path) -> bool:
    """Whether it is one adapter alone."""
    with opened(file) as reader:
        return reader.name == ADAPTER_MANIFEST


def read_manifest(reader: Reader) -> dict[str, Any]:
    """The first file as JSON, and the signatures behind it into `reader.beside`: no more is read than may be there.

    The digest that ends a bundle's manifest is left out: it is compared where it stands unpacked.
    """
    value = parse_json(reader.manifest, f"{reader.path}: its {reader.name}")
    value.pop(DIGEST, None)
    files = value.get("files")
    faults = Faults(f"{reader.path}: its {reader.name} is no manifest")
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        faults.add("files: must be an object of objects")
        files = {}
    signatures = signature_names(files, bundle=reader.name == MANIFEST)
    named = set(signatures)
    for name in files:
        if name == reader.name or name.split("/")[0].lower() == PREPARED:
            faults.add(f"files.{name}: is made on the device, never moved")
        if name in named:
            faults.add(f"files.{name}: is a signature, which no list names")
    faults.raise_if_any("Pack it again.")
    reader.take_beside(signatures, {name: entry.get("size") for name, entry in files.items()}, LARGEST)
    return value


def unpack(reader: Reader, manifest: dict[str, Any], stage: Path) -> None:
    """Signatures, and all files that the manifest names, into an empty folder. Digests are not compared here."""
    reader.unpack({name: entry.get("size") for name, entry in manifest["files"].items()}, stage)


def check_adapter(reader: Reader, manifest: dict[str, Any]) -> None:
    """EdgeftError lists what an adapter's manifest lacks, before any of it is used."""
    faults = Faults(f"{reader.path}: its {reader.name} is no adapter's manifest")
    if manifest.get("format") != ADAPTER_FORMAT:
        faults.add("format", declared=manifest.get("format"), found=f"this edgeft reads {ADAPTER_FORMAT}")
    for key in ("base", "quant", "adapter", "parity", "files"):
        if not isinstance(manifest.get(key), dict):
            faults.add(f"{key}: must be dict, found {type(manifest.get(key)).__name__}")
    name = manifest.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name) or name == "none":
        faults.add(f"name: {str(name)[:64]!r} is no adapter's name")
    faults.raise_if_any("Pack it again.")
    if not isinstance(manifest["base"].get("fingerprint"), str):
        faults.add("base.fingerprint: must be str")
    file = f"adapters/{name}.safetensors"
    entry = manifest["files"].get(file)
    if list(manifest["files"]) != [file] or manifest["adapter"].get("file") != file:
        faults.add(f"files: must be {file} alone")
    elif not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        faults.add(f"files.{file}: must hold size and sha256")
    if not _rows_are_right(manifest.get("replay"), name):
        faults.add(f"replay: must be 1 to {MAX_ROWS} recorded answers of {name}, of at most {MAX_TOKENS} tokens each")
    faults.raise_if_any("Pack it again.")


def _rows_are_right(rows: Any, name: Any) -> bool:
    """Whether these are recorded answers of this adapter; what they say is compared when they are asked again."""
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_ROWS:
        return False
    return all(isinstance(row, dict) and _ids(row.get("ids")) and _ids(row.get("tokens"))
               and len(row["ids"]) + len(row["tokens"]) <= MAX_TOKENS
               and isinstance(row.get("adapters"), dict) and list(row["adapters"]) == [name]
               and type(row["adapters"][name]) in (int, float) for row in rows)


def _ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)
