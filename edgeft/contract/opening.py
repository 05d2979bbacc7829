"""Opening what a stranger made: plain files of bounded size, and JSON that cannot grow in memory."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from .errors import EdgeftError

MAX_JSON = 16 << 20  # bytes
MAX_VALUES = 500_000  # of a JSON text: each takes up to 80 bytes in memory, most of them 3 in the text
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")  # of a path inside a bundle
FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class Refused(ValueError):
    """A file that is not opened; the text says why."""


@contextmanager
def open_plain(path: Path, limit: int | None = None) -> Iterator[BufferedReader]:
    """A file, open for reading; Refused for a device, a pipe, or more than `limit` bytes. OSError as `open` has it."""
    with _stream(os.open(path, FLAGS)) as stream:  # not blocking: a pipe would wait for its writer
        _check_size(os.fstat(stream.fileno()).st_size, limit)
        yield stream


@contextmanager
def open_inside(folder: Path, name: str, limit: int | None = None) -> Iterator[BufferedReader]:
    """A file below `folder`, open for reading; Refused also for links of either kind and names that lead elsewhere.

    A file with a second name is refused because that name may lie anywhere, and what is not the bundle's own must not
    even be read. A bundle that is copied as a whole has none.
    """
    path = inside(folder, name)
    try:
        descriptor = os.open(path, FLAGS | NO_LINK)
    except FileNotFoundError:
        raise Refused("is missing") from None
    except OSError as error:
        raise Refused(f"cannot be read ({error.strerror})") from None
    with _stream(descriptor) as stream:
        found = os.fstat(stream.fileno())
        if found.st_nlink != 1:
            raise Refused(f"has {found.st_nlink} names (hard links): it may lie outside the bundle")
        _check_size(found.st_size, limit)
        yield stream


def _stream(descriptor: int) -> BufferedReader:
    """An open descriptor as a stream; Refused, and closed, if it is no plain file."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused("is missing, or cannot be read: it is no plain file")
    return os.fdopen(descriptor, "rb")


def inside(folder: Path, name: str) -> Path:
    """The path of a file below `folder`; Refused if any part of it is a link, or no plain name."""
    parts = name.split("/")
    if len(parts) > 8 or not all(PART.fullmatch(part) for part in parts):
        raise Refused("points outside the bundle, or is no plain path")
    for size in range(1, len(parts) + 1):
        if os.path.islink(folder.joinpath(*parts[:size])):
            raise Refused("points outside the bundle: it is a link")
    return folder.joinpath(*parts)


def _check_size(size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise Refused(f"has {size} bytes; at most {limit} are read")


def read_bounded(stream: BufferedReader, limit: int) -> bytes:
    """All of an open file; Refused if it grew past `limit` meanwhile."""
    data = stream.read(limit + 1)
    _check_size(len(data), limit)
    return data


def digest(stream: BufferedReader) -> str:
    """The SHA-256 of an open file, from its beginning, in hex."""
    stream.seek(0)
    return hashlib.file_digest(stream, "sha256").hexdigest()


def count_values(data: bytes) -> int:
    """At least how many values a JSON text holds, of which nothing is made."""
    return sum(map(data.count, (b",", b":", b"[", b"{")))


def parse_json(data: bytes, what: object, *, most: int = MAX_VALUES) -> dict[str, Any]:
    """A JSON object; EdgeftError says what is wrong with it, before more is made of it than it may take."""
    if count_values(data) > most:
        raise EdgeftError(f"{what}: holds more than {most:,} values; that is no file of this kind")
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise EdgeftError(f"{what}: is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise EdgeftError(f"{what}: must hold a JSON object, found {type(value).__name__}")
    return value
