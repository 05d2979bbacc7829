"""What a signature covers and where it lies, and what a device trusts. No cryptography here: run/signing.py has it.

A bundle's signature (`bundle.sig`) covers the manifest but for its adapters, which come and go; each adapter's
(`NAME.safetensors.sig`, beside the file) covers its bytes and its name; so does one of its twin for ONNX Runtime GenAI.
All else follows from digests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import EdgeftError, UsageError
from .files import read_json, write_json

FORMAT, SCHEME = 1, "ed25519"
BUNDLE, ADAPTER = "bundle", "adapter"  # subjects: a signature of one is never one of the other
BUNDLE_SIGNATURE, SUFFIX = "bundle.sig", ".sig"
POLICY_SUFFIX = ".trust.json"
LARGEST = 1 << 14  # bytes of a signature's file


@dataclass(frozen=True)
class Signature:
    """A signature's file: whose it is, and of what kind of subject."""

    subject: str
    key: str  # id of the key: the first 16 digits of its SHA-256
    value: bytes
    default_adapter: str | None = None  # of a bundle: as it was signed; `edgeft remove` may have taken it out since


@dataclass(frozen=True)
class Policy:
    """What a place trusts: only what one of these keys has signed."""

    keys: tuple[str, ...]  # public keys, PEM


def bundle_statement(manifest: Mapping[str, Any], default_adapter: str | None) -> bytes:
    """The bytes that a bundle's signature signs: everything in bundle.json that no adapter changes."""
    parity = manifest.get("parity", {})
    own = {key: value for key, value in manifest.items() if key != "adapters"}
    own["files"] = {name: entry for name, entry in manifest["files"].items() if not name.startswith("adapters/")}
    own["default_adapter"] = default_adapter
    own["parity"] = {**{key: value for key, value in parity.items() if key != "adapters"},
                     "replay": [item for item in parity.get("replay", []) if not item["adapters"]]}
    return _statement(BUNDLE, own)


def signed_as(file: str) -> str:
    """The name under which a file of adapters/ is signed: the adapter's, or for a twin one that no adapter can have."""
    own = file.rpartition("/")[2]
    return own.removesuffix(".safetensors") if own.endswith(".safetensors") else f"file:{own}"


def adapter_statement(name: str, sha256: str) -> bytes:
    """The bytes that an adapter's signature signs; its base, method and prompt format stand in the file's header."""
    return _statement(ADAPTER, {"name": name, "sha256": sha256})


def _statement(subject: str, value: Any) -> bytes:
    """Canonical JSON behind a line that belongs to this format and subject alone."""
    return f"edgeft signature {FORMAT}: {subject}\n".encode() + json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def adapter_files(files: Iterable[str]) -> list[str]:
    """Of a bundle's files those that are signed one by one: adapters, and their twins for ONNX Runtime GenAI."""
    return sorted(name for name in files if name.startswith("adapters/"))


def signature_names(files: Iterable[str], *, bundle: bool) -> list[str]:
    """Every signature that may lie beside these files, in a packed file's order; `bundle`: the bundle's own, too."""
    own = [BUNDLE_SIGNATURE] if bundle else []
    return [*own, *(f"{name}{SUFFIX}" for name in adapter_files(files))]


def signatures_there(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The bytes of those that there are, as they are; a link or a longer file is no signature."""
    paths = {name: folder / name for name in names}
    return {name: path.read_bytes() for name, path in paths.items()
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= LARGEST}


def signature_path(path: Path) -> Path:
    """Where the signature of a bundle's folder or of an adapter's file lies."""
    return path / BUNDLE_SIGNATURE if path.is_dir() else path.with_name(path.name + SUFFIX)


def write_signature(path: Path, signature: Signature) -> None:
    """Write a signature's file, atomic and flushed."""
    extra = {"default_adapter": signature.default_adapter} if signature.subject == BUNDLE else {}
    write_json(path, {"format": FORMAT, "scheme": SCHEME, "subject": signature.subject, "key": signature.key, **extra,
                      "signature": signature.value.hex()})


def read_signature(path: Path, subject: str) -> Signature:
    """Read a signature's file; EdgeftError if it is none, or one of something else."""
    if path.is_symlink() or not path.is_file():
        raise EdgeftError(f"{path}: there is no signature. `edgeft sign` makes one.")
    if path.stat().st_size > LARGEST:
        raise EdgeftError(f"{path}: is no signature (longer than 16 KiB)")
    stored = read_json(path)
    for key, declared in (("format", FORMAT), ("scheme", SCHEME), ("subject", subject)):
        if stored.get(key) != declared:
            raise EdgeftError(f"{path}: is no signature of this {subject} ({key} declared {stored.get(key)!r}, this "
                              f"edgeft reads {declared!r})")
    value, default = stored.get("signature"), stored.get("default_adapter")
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{128}", value) \
            or not isinstance(default, str | None) or not isinstance(stored.get("key"), str):
        raise EdgeftError(f"{path}: is no signature (it must hold 64 bytes in hex, and the key's id)")
    return Signature(subject, stored["key"], bytes.fromhex(value), default)


def policy_path(place: Path) -> Path:
    """Where a place's policy lies: beside it, so that no switch and no rollback takes it along."""
    place = place.resolve()
    return place.with_name(place.name + POLICY_SUFFIX)


def read_policy(place: Path) -> Policy | None:
    """What a place trusts; None where nothing was said. A policy that cannot be read is an error, not a consent."""
    path = policy_path(place)
    if not path.exists():
        return None
    stored = read_json(path)
    keys = stored.get("keys")
    if stored.get("format") != FORMAT or not isinstance(keys, list) or not keys \
            or not all(isinstance(key, str) for key in keys):
        raise EdgeftError(f"{path}: is no trust policy of format {FORMAT}. Install again with --require-signature "
                          "--key PUBLIC.")
    return Policy(tuple(keys))


def write_policy(place: Path, policy: Policy | None) -> None:
    """Remember what a place trusts; None: anything."""
    if policy is None:
        policy_path(place).unlink(missing_ok=True)
    else:
        write_json(policy_path(place), {"format": FORMAT, "keys": list(policy.keys)})


def refuse_if_signed_only(place: Path, what: str) -> None:
    """UsageError if a place takes only what is signed, for commands that make something new there."""
    if read_policy(place):
        raise UsageError(f"{place}: takes only what is signed ({policy_path(place).name}), and {what} here would not "
                         "be. Do it where the key is, sign it there, and install it.")
