"""Writing so that the old or the new is there, never something between: stage, fsync, rename."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import EdgeftError, UsageError
from .opening import MAX_JSON, open_plain, parse_json, read_bounded

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)


def refuse_existing(path: Path) -> None:
    """Raise if something is at `path` already: nothing of the user's is ever overwritten."""
    if os.path.lexists(path):
        raise UsageError(f"{path}: already exists. Choose another name, or remove it first.")


@contextmanager
def staged(final: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a folder beside `final` that takes its name when the block ends well and vanishes otherwise.

    With `replace`, an older `final` makes way at the very end.
    """
    final = Path(final)
    if not replace:
        refuse_existing(final)
    with scratch(final) as stage, disk_errors(final):
        yield stage
        sync_tree(stage)
        if replace and final.exists():
            exchange(stage, final)  # the stage's folder now holds the old one, and vanishes with it
        else:
            stage.rename(final)
        sync_folder(final.parent)


@contextmanager
def scratch(final: Path) -> Iterator[Path]:
    """Yield an empty folder beside `final`, gone afterwards; one that a killed process left is swept first."""
    final = Path(final)
    with disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        sweep(final)
        folder = final.parent / f".{final.name}.partial-{os.getpid()}"
        folder.mkdir()
    try:
        with disk_errors(final):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def exchange(one: Path, other: Path) -> None:
    """Swap two folders' names: in one step on Linux, in three where the system or the disk cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename:
        if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
            return
        if (code := ctypes.get_errno()) not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise OSError(code, os.strerror(code), str(other))
    aside = other.parent / f".{other.name}.old-{os.getpid()}"  # `sweep` gives it its name back after a kill
    other.rename(aside)
    try:
        one.rename(other)
    except BaseException:
        aside.rename(other)
        raise
    aside.rename(one)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that changes what a folder holds; others wait, and say so. Readers need no lock.

    The lock is the folder's own (flock), so that nothing is left behind by a process that is killed.
    """
    if fcntl is None:
        yield
        return
    with disk_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        while not _lock(descriptor, folder):
            os.close(descriptor)  # another folder has taken the name meanwhile
            descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> bool:
    """Lock an open folder; whether it still has its name then."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{folder}: another process is changing it; waiting", file=sys.stderr, flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # some network file systems lock nothing
        return True
    return os.path.exists(folder) and os.path.samestat(os.fstat(descriptor), os.stat(folder))


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn a full disk or a lost permission into one clear message about `target`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR,
                               errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG):
            raise
        raise EdgeftError(f"{target}: cannot be written ({error.strerror}). Make room or choose another "
                          "place, then run it again.") from None


def sweep(final: Path) -> None:
    """Remove stages that a killed process left for this name."""
    for path in final.parent.glob(f".{glob.escape(final.name)}.*-*"):
        process = re.fullmatch(re.escape(f".{final.name}.") + r"(partial|old)-(\d+)", path.name)
        if not process or _lives(int(process[2])):
            continue
        if process[1] == "old" and not final.exists():
            path.rename(final)  # killed between the two renames: the old one is still the good one
        else:
            shutil.rmtree(path, ignore_errors=True)


def _lives(process: int) -> bool:
    """Whether another process has this number; one with ours is dead (containers give the same one again)."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def copy_file(source: Path, target: Path) -> None:
    """A copy of a file, whose bytes are shared on the disk where the file system can do that.

    Never a second name for it: a bundle's files have one name each, also while another process reads the bundle.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as reader, open(target, "wb") as writer:
        left = os.fstat(reader.fileno()).st_size
        try:
            while left > 0 and hasattr(os, "copy_file_range"):
                done = os.copy_file_range(reader.fileno(), writer.fileno(), left)
                if not done:
                    break
                left -= done
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                raise
        shutil.copyfileobj(reader, writer)  # goes on where the kernel stopped


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder` to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people: indented, atomic, flushed."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, atomic and flushed."""
    path = Path(path)
    stage = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        try:
            with stage.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            stage.replace(path)
        except BaseException:
            stage.unlink(missing_ok=True)
            raise


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; EdgeftError says what is wrong with it."""
    try:
        with open_plain(Path(path), MAX_JSON) as stream:
            data = read_bounded(stream, MAX_JSON)
    except OSError as error:
        raise EdgeftError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise EdgeftError(f"{path}: {error}") from None
    return parse_json(data, path)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
