"""Packages from npm, as web.toml pins them: from a folder that the user names, the cache, or the registry."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import tomllib
import urllib.request
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

from edgeft.contract.errors import EdgeftError
from edgeft.contract.files import disk_errors

FOLDER = "EDGEFT_NPM"  # names a folder that holds the packages' tarballs, for work without a network
MOST = 256 << 20  # bytes of a tarball, and of one file in it
PATIENCE = 60  # seconds without an answer


@dataclass(frozen=True)
class Package:
    """One pinned package; `files` maps its own files to the names that they get in the page's folder."""

    name: str
    version: str
    license: str
    home: str
    tarball: str
    integrity: str
    files: dict[str, str]

    @property
    def file(self) -> str:
        """The tarball's name, as `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def packages() -> list[Package]:
    """All that web.toml pins."""
    table = tomllib.loads(files("edgeft.export").joinpath("web.toml").read_text(encoding="utf-8"))
    return [Package(**entry) for entry in table["package"]]


def read_package(package: Package) -> dict[str, bytes]:
    """The files wanted of a package, by their names in the page; EdgeftError says where it was looked for."""
    with tarfile.open(fileobj=io.BytesIO(_tarball(package))) as archive:
        return {name: _member(archive, package, path) for path, name in package.files.items()}


def cache() -> Path:
    """Where tarballs are kept from one export to the next."""
    system = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return Path(system or Path.home() / ".cache") / "edgeft" / "npm"


def _tarball(package: Package) -> bytes:
    named = os.environ.get(FOLDER)
    if named:
        path = Path(named) / package.file
        if not path.is_file():
            raise EdgeftError(f"{path}: is missing, and {FOLDER} says that npm packages are there. Put the file of "
                              f"{package.tarball} there, or unset {FOLDER}.")
        return _checked(package, path.read_bytes(), path)
    path = cache() / package.file
    if path.is_file():
        try:
            return _checked(package, path.read_bytes(), path)
        except EdgeftError:
            path.unlink()  # cut short by a power cut, say: it is fetched again
    content = _checked(package, _fetch(package, path), package.tarball)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stage = path.with_name(f"{path.name}.{os.getpid()}")
        stage.write_bytes(content)
        stage.replace(path)
    return content


def _fetch(package: Package, path: Path) -> bytes:
    assert urlsplit(package.tarball).scheme == "https"
    try:
        with urllib.request.urlopen(package.tarball, timeout=PATIENCE) as answer:
            return bytes(answer.read(MOST))
    except OSError as error:  # URLError and timeouts are among them
        reason = getattr(error, "reason", error)
        raise EdgeftError(
            f"{package.name} {package.version}: a page for the browser needs it, and it is not to be had\n"
            f"  {path}  is not there\n  {package.tarball}  cannot be read ({reason})\n"
            f"Put that file into a folder (`npm pack {package.name}@{package.version}` gives it where there is a "
            f"network), and name the folder in {FOLDER}.") from None


def _checked(package: Package, content: bytes, where: object) -> bytes:
    found = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != package.integrity:
        raise EdgeftError(f"{where}: is not {package.name} {package.version}\n"
                          f"  sha512  declared {package.integrity[7:19]}  found {found[7:19]}\nFetch it again.")
    return content


def _member(archive: tarfile.TarFile, package: Package, path: str) -> bytes:
    """One file, read into memory: nothing of an archive is unpacked where its own names say."""
    try:
        member = archive.getmember(f"package/{path}")
        stream = archive.extractfile(member) if member.isfile() and member.size <= MOST else None
    except KeyError:
        stream = None
    if stream is None:
        raise EdgeftError(f"{package.file}: holds no file {path!r}. web.toml and the package do not match.")
    return stream.read()
