"""Ed25519 signatures of bundles and adapters: made where the key is, checked before anything signed is believed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.contract.bundle import MANIFEST, Bundle, read_bundle
from edgeft.contract.errors import EdgeftError, Faults, UsageError
from edgeft.contract.files import disk_errors, refuse_existing, sha256, sync_folder
from edgeft.contract.signature import (
    ADAPTER,
    BUNDLE,
    BUNDLE_SIGNATURE,
    Signature,
    adapter_files,
    adapter_statement,
    bundle_statement,
    read_signature,
    signature_path,
    signed_as,
    write_signature,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

LARGEST_KEY = 1 << 14  # bytes of a PEM file
TWIN = ".onnx_adapter"
BEHIND = "{path}: {what}. `edgeft sign --new-key FILE` makes a pair: FILE signs, FILE.pub checks."


def new_key(path: Path) -> str:
    """Make a key pair: `path` (PEM, readable by its owner alone) and `path`.pub; returns the key's id."""
    kinds, coding = _library()
    public_path = path.with_name(path.name + ".pub")
    for place in (path, public_path):
        refuse_existing(place)
    key = kinds.Ed25519PrivateKey.generate()
    private = key.private_bytes(coding.Encoding.PEM, coding.PrivateFormat.PKCS8, coding.NoEncryption())
    with disk_errors(path):
        try:
            _write_new(path, private, 0o600)
            _write_new(public_path, public_pem(key.public_key()).encode(), 0o644)
        except BaseException:
            for place in (path, public_path):
                place.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    return key_id(key.public_key())


def sign(target: Path, key_path: Path) -> dict[str, Any]:
    """Sign a bundle with all its adapters, or one adapter's file; returns what was signed, and by which key.

    EdgeftError if a file of the bundle is not as exported: what is signed is what was read.
    """
    key = _private(key_path)
    name = key_id(key.public_key())
    if not target.is_dir():
        _check_adapter_file(target)
        statement = adapter_statement(target.stem, sha256(target))
        write_signature(signature_path(target), Signature(ADAPTER, name, key.sign(statement)))
        return {"subject": ADAPTER, "key": name, "adapters": [target.stem]}
    bundle = read_bundle(target)
    bundle.check_files(whole=True)
    for file in adapter_files(bundle.manifest["files"]):
        statement = adapter_statement(signed_as(file), bundle.manifest["files"][file]["sha256"])
        write_signature(signature_path(target / file), Signature(ADAPTER, name, key.sign(statement)))
    default = bundle.default_adapter
    value = key.sign(bundle_statement(bundle.manifest, default))
    write_signature(signature_path(target), Signature(BUNDLE, name, value, default))
    return {"subject": BUNDLE, "key": name, "adapters": sorted(bundle.adapters)}


def check_bundle(bundle: Bundle, keys: Sequence[str]) -> dict[str, str]:
    """Signer of the bundle ("") and of each adapter, by key id; EdgeftError lists all that none of `keys` (PEM) signed.

    The files' own digests are `Bundle.check_files`' matter, and those are what the signatures cover.
    """
    trusted = _trusted(keys)
    faults, signers = Faults(f"{bundle.folder}: is not signed by a key that is trusted here"), {}

    def check(name: str, path: Path, subject: str, statement: Any) -> None:
        try:
            signature = read_signature(path, subject)
            signers[name] = _signer(signature, statement(signature), trusted, path)
        except EdgeftError as error:
            faults.add(str(error))

    check("", bundle.folder / BUNDLE_SIGNATURE, BUNDLE,
          lambda signature: bundle_statement(bundle.manifest, signature.default_adapter))
    for file in adapter_files(bundle.manifest["files"]):
        name, digest = signed_as(file), bundle.manifest["files"][file]["sha256"]
        check(name, signature_path(bundle.folder / file), ADAPTER,
              lambda _, name=name, digest=digest: adapter_statement(name, digest))
    if not faults.lines:
        _check_rest(bundle, faults)
    faults.raise_if_any("Get it from its publisher again, or give the publisher's own key.")
    return signers


def check_adapter(path: Path, keys: Sequence[str], *, name: str = "", digest: str = "") -> str:
    """The id of the key that signed an adapter's file; EdgeftError if none of `keys` (PEM) did.

    `name`: what it is to be called, if not as its file. `digest`: the SHA-256 of its bytes where that is known.
    """
    signature_file = path.with_name(path.name + ".sig")
    signature = read_signature(signature_file, ADAPTER)
    return _signer(signature, adapter_statement(name or path.stem, digest or sha256(path)), _trusted(keys),
                   signature_file)


def public_keys(paths: Sequence[Path]) -> list[str]:
    """Public keys from their files, as PEM; UsageError for anything else."""
    return [public_pem(_public(path)) for path in paths]


def public_pem(key: Ed25519PublicKey) -> str:
    """A public key as PEM."""
    coding = _library()[1]
    return key.public_bytes(coding.Encoding.PEM, coding.PublicFormat.SubjectPublicKeyInfo).decode()


def key_id(key: Ed25519PublicKey) -> str:
    """A short name of a key: the first 16 digits of its SHA-256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _check_rest(bundle: Bundle, faults: Faults) -> None:
    """What the signed statements leave open: a default that was not signed, and files that nobody listed."""
    signed = read_signature(bundle.folder / BUNDLE_SIGNATURE, BUNDLE).default_adapter
    if bundle.default_adapter not in (signed, None):
        faults.add("default_adapter", declared=signed, found=bundle.default_adapter)
    owned = {f"adapters/{name}{suffix}" for name in bundle.adapters for suffix in (".safetensors", TWIN)}
    for name in adapter_files(bundle.manifest["files"]):
        if name not in owned:
            faults.add(f"{name}: belongs to no adapter")
    for path in sorted(bundle.folder.iterdir()):  # a chat template laid beside it would be read
        if path.name not in (*bundle.manifest["files"], MANIFEST, BUNDLE_SIGNATURE) and not path.is_dir() \
                and not path.name.startswith("."):
            faults.add(f"{path.name}: is in no list of files")


def _check_adapter_file(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path}: there is no bundle and no adapter's file.")
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: is no adapter's file (NAME.safetensors, as in a bundle's adapters/).")
    from edgeft.contract.tensors import TensorFile

    if not TensorFile(path).metadata.get("base_fingerprint"):
        raise EdgeftError(f"{path}: its header names no base, so it is no adapter of a bundle. Sign the file in the "
                          "bundle's adapters/.")


def _signer(signature: Signature, statement: bytes, trusted: dict[str, Ed25519PublicKey], path: Path) -> str:
    if signature.key not in trusted:
        raise EdgeftError(f"{path.name}: key declared {signature.key}  trusted {', '.join(trusted)}")
    from cryptography.exceptions import InvalidSignature

    try:
        trusted[signature.key].verify(signature.value, statement)
    except InvalidSignature:
        raise EdgeftError(f"{path.name}: its signature is of other content, or was not made by key "
                          f"{signature.key}") from None
    return signature.key


def _trusted(keys: Sequence[str]) -> dict[str, Ed25519PublicKey]:
    return {key_id(key): key for key in (_load_public(pem.encode(), Path("a stored key")) for pem in keys)}


def _public(path: Path) -> Ed25519PublicKey:
    return _load_public(_read_key(path), path)


def _load_public(data: bytes, path: Path) -> Ed25519PublicKey:
    kinds, coding = _library()
    if b"PRIVATE KEY" in data:
        raise UsageError(f"{path}: is a private key, and checking takes the public one ({path.name}.pub).")
    try:
        key = coding.load_pem_public_key(data)
    except ValueError as error:
        raise UsageError(BEHIND.format(path=path, what=f"is no public key ({error})")) from None
    if not isinstance(key, kinds.Ed25519PublicKey):
        raise UsageError(BEHIND.format(path=path, what=f"must be an Ed25519 key, found {type(key).__name__}"))
    return key


def _private(path: Path) -> Ed25519PrivateKey:
    kinds, coding = _library()
    data = _read_key(path)
    if b"PUBLIC KEY" in data:
        raise UsageError(f"{path}: is a public key; signing takes the private one.")
    try:
        key = coding.load_pem_private_key(data, None)
    except (ValueError, TypeError) as error:
        raise UsageError(BEHIND.format(path=path, what=f"is no private key without a password ({error})")) from None
    if not isinstance(key, kinds.Ed25519PrivateKey):
        raise UsageError(BEHIND.format(path=path, what=f"must be an Ed25519 key, found {type(key).__name__}"))
    return key


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(LARGEST_KEY)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from None


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _library() -> tuple[Any, Any]:
    """`cryptography`'s Ed25519 keys and their encodings; EdgeftError says what to install."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise EdgeftError("Signatures need the package cryptography: pip install 'edgeft[sign]'.") from None
    return ed25519, serialization
