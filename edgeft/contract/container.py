"""One file that holds several: a tar in which every byte follows from the names, sizes and contents.

The first file is a manifest that names all others with their sizes. So the reader interprets none of what a stranger
wrote in a header: it makes the header that must stand there, and compares. Links, devices, paths to elsewhere, names
that come twice, sizes that lie and bytes hidden between files are refused for being something else than that. `tar tf`
lists such a file, of any size (GNU format). Signatures, which no manifest can name, stand right behind it.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from .errors import EdgeftError, Faults
from .manifest import MAX_MANIFEST

SUFFIX = ".edgeft"
BLOCK, PIECE = 512, 1 << 20
MAX_FILES = 10_000
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@-]*")  # of a path; what every file system takes
MAX_NAME = 100  # what a tar header has room for
END = b"\0" * (2 * BLOCK)


def header(name: str, size: int) -> bytes:
    """The one header that a file of this name and size has."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def padding(size: int) -> bytes:
    """What fills a file's last block."""
    return b"\0" * (-size % BLOCK)


def total_size(sizes: Iterable[int]) -> int:
    """Bytes of a container of files of these sizes."""
    return sum(BLOCK + size + -size % BLOCK for size in sizes) + len(END)


def check_names(names: Iterable[str], faults: Faults) -> None:
    """Note each name that some file system would not take, or would take for another one."""
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        parts = name.split("/")
        if len(name) > MAX_NAME or not all(PART.fullmatch(part) and not part.endswith(".") for part in parts):
            faults.add(f"{name[:MAX_NAME]!r}: a path within the bundle of letters, digits and ._+@-, of at most "
                       f"{MAX_NAME} characters, was expected")
            continue
        if name.lower() in seen:
            faults.add(f"{name!r}: differs from {seen[name.lower()]!r} in case alone")
        seen[name.lower()] = name
        folders |= {parent.as_posix().lower(): name for parent in PurePosixPath(name).parents}
    for folder in sorted(seen.keys() & folders.keys()):
        faults.add(f"{seen[folder]!r}: is a file, and the folder of {folders[folder]!r}")


def write_member(stream: IO[bytes], name: str, size: int, data: Iterable[bytes]) -> None:
    """Append a file; EdgeftError if its data are not of the size that was said."""
    stream.write(header(name, size))
    written = 0
    for piece in data:
        stream.write(piece)
        written += len(piece)
    if written != size:
        raise EdgeftError(f"{name}: {size} bytes were expected, found {written}: it changed meanwhile. Pack it again.")
    stream.write(padding(size))


def write_end(stream: IO[bytes]) -> None:
    """What ends a container."""
    stream.write(END)


class Reader:
    """A container, read from its beginning to its end in one pass.

    `name` and `manifest` are its first file, `beside` is what `take_beside` found behind it, `unpack` writes all. Every
    refusal is an EdgeftError that names the container.
    """

    def __init__(self, path: Path, stream: IO[bytes], manifests: Iterable[str]) -> None:
        self.path, self._stream = Path(path), stream
        self.size = stream.seek(0, 2)
        stream.seek(0)
        block = stream.read(BLOCK)
        self.name, size = self._first(block, list(manifests))
        self.manifest = stream.read(size)
        self._check_padding(self.name, size)
        self.beside: dict[str, bytes] = {}

    def take_beside(self, names: Sequence[str], files: Mapping[str, Any], limit: int) -> None:
        """Read what may stand behind the manifest without being in its list `files`, into memory.

        Each of `names` at most once, in this order, of at most `limit` bytes; together no more than a manifest.
        """
        order, last, room = {name: place for place, name in enumerate(names)}, -1, MAX_MANIFEST
        while True:
            block = self._stream.read(BLOCK)
            name, size = claim(block)
            if name is None or name in files:
                self._stream.seek(-len(block), 1)
                return
            place = order.get(name, -1)
            if place > last and not 0 <= size <= min(limit, room):
                raise self._refusal(f"{name} of {size} bytes, and at most {min(limit, room)} are read")
            if place <= last or block != header(name, size):
                found = describe(block, {**files, **dict.fromkeys(names, size)})
                raise self._refusal(f"behind its {self.name} stands {found}")
            last, room = place, room - size
            self.beside[name] = self._stream.read(size)
            if len(self.beside[name]) != size:
                raise self._refusal(f"{name} ends early")
            self._check_padding(name, size)

    def unpack(self, files: Mapping[str, int], folder: Path) -> None:
        """Write the manifest, what was found beside it, and all files (name -> size) to an empty folder.

        Nothing is written unless the container has the very length that these have together.
        """
        faults = Faults(f"{self.path}: is not what `edgeft pack` writes")
        if len(files) > MAX_FILES:
            faults.add(f"{len(files):,} files; at most {MAX_FILES:,} are read")
        check_names([self.name, *self.beside, *files], faults)
        for name, size in files.items():
            if type(size) is not int or not 0 <= size < 1 << 60:
                faults.add(f"{name}: a size of {size!r}"[:MAX_NAME])
        faults.raise_if_any()
        wanted = total_size([len(self.manifest), *map(len, self.beside.values()), *files.values()])
        if self.size != wanted:
            why = "it was cut short" if self.size < wanted else "more stands in it than its manifest names"
            raise EdgeftError(f"{self.path}: declared {wanted} bytes, found {self.size}: {why}. Copy it again.")
        for name, data in {self.name: self.manifest, **self.beside}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        for name in sorted(files):
            self._unpack_one(name, files[name], files, folder / name)
        if self._stream.read() != END:
            raise self._refusal("ends in something else than zeros")

    def _unpack_one(self, name: str, size: int, files: Mapping[str, int], target: Path) -> None:
        block = self._stream.read(BLOCK)
        if block != header(name, size):
            raise self._refusal(f"{name} was expected, and found {describe(block, files)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            left = size
            while left:
                piece = self._stream.read(min(left, PIECE))
                if not piece:
                    raise self._refusal(f"{name} ends {left} bytes early")
                out.write(piece)
                left -= len(piece)
        self._check_padding(name, size)

    def _first(self, block: bytes, manifests: list[str]) -> tuple[str, int]:
        """Name and size of the manifest, which alone are read from a header, and checked like all others."""
        try:
            info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, ValueError):
            raise EdgeftError(f"{self.path}: is no bundle folder, and no file that `edgeft pack` wrote.") from None
        if info.name not in manifests:
            raise self._refusal(f"{' or '.join(manifests)} was expected first, and found {describe(block, {})}")
        if not 0 <= info.size <= MAX_MANIFEST or block != header(info.name, info.size):
            raise self._refusal(f"its manifest: {describe(block, {})}, at most {MAX_MANIFEST} bytes are read")
        if self.size < total_size([info.size]):
            raise self._refusal("it was cut short")
        return info.name, info.size

    def _check_padding(self, name: str, size: int) -> None:
        expected = padding(size)
        if self._stream.read(len(expected)) != expected:
            raise self._refusal(f"behind {name} stands something else than zeros")

    def _refusal(self, why: str) -> EdgeftError:
        return EdgeftError(f"{self.path}: is not what `edgeft pack` writes\n  {why}\nCopy it again, or pack it again; "
                           "nothing of it was kept.")


def claim(block: bytes) -> tuple[str | None, int]:
    """Name and size that a header claims, to be compared with the one that it must be; None where there is none."""
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "backslashreplace")
    except (tarfile.HeaderError, ValueError):
        return None, 0
    return info.name, info.size


def describe(block: bytes, files: Mapping[str, Any]) -> str:
    """What a header that is not the expected one says, for the message alone; `files`: name -> size."""
    if not any(block):
        return "the end"
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except (tarfile.HeaderError, ValueError):
        return "no header"
    name = repr(info.name[:MAX_NAME])
    if info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        return f"{name}, a link to {info.linkname[:MAX_NAME]!r}"
    if not info.isreg() or info.type != tarfile.REGTYPE:
        kinds = {tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a pipe",
                 tarfile.DIRTYPE: "a folder", tarfile.GNUTYPE_SPARSE: "a file with holes"}
        return f"{name}, {kinds.get(info.type, 'an extended header')}"
    if info.name.startswith("/") or ".." in info.name.split("/"):
        return f"{name}, which lies elsewhere"
    if info.name not in files:
        return f"{name}, which its manifest does not name"
    if info.size != files[info.name]:
        return f"{name} of {info.size} bytes, and declared are {files[info.name]}"
    return f"{name}, which comes twice or out of turn, or whose header says more than it should"
