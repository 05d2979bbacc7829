"""Signatures in packed files: members that no list names, so each that may not be there is refused before all else."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeft.contract.container import BLOCK, END, header, padding
from edgeft.contract.manifest import MAX_MANIFEST
from edgeft.contract.signature import LARGEST
from edgeft.run.install import install
from edgeft.run.pack import pack

from .conftest import Refusal
from .forge import copied

OWN, ITS = "bundle.sig", "adapters/colors.safetensors.sig"
FILE = "adapters/colors.safetensors"


def member(name: str, data: bytes = b"{}", size: int | None = None) -> bytes:
    """A file of a tar, whose header may lie about its size."""
    return header(name, len(data) if size is None else size) + data + padding(len(data))


def linked(name: str, target: str) -> bytes:
    """A link under a signature's name."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info.tobuf(tarfile.GNU_FORMAT)[:BLOCK]


@pytest.fixture
def parts(bundle: Path, tmp_path: Path) -> tuple[bytes, bytes]:
    """A good packed file without signatures: its manifest, and what follows but for the end."""
    data = Path(pack(bundle, tmp_path / "packed" / "good.edgeft")["file"]).read_bytes()
    size = tarfile.TarInfo.frombuf(data[:BLOCK], "ascii", "strict").size
    first = BLOCK + size + len(padding(size))
    return data[:first], data[first : -len(END)]


HOSTILE: dict[str, tuple[Callable[[bytes, bytes], bytes], str]] = {
    "1 GiB by its header": (
        lambda first, rest: first + member(OWN, size=1 << 30) + rest + END,
        "bundle.sig of 1073741824 bytes, and at most 16384 are read",
    ),
    "1 TiB by its header": (
        lambda first, rest: first + member(ITS, size=1 << 40) + rest + END,
        "colors.safetensors.sig of 1099511627776 bytes, and at most",
    ),
    "a byte too long": (
        lambda first, rest: first + member(OWN, b" " * (LARGEST + 1)) + rest + END,
        "bundle.sig of 16385 bytes, and at most",
    ),
    "of a negative size": (
        lambda first, rest: first + member(OWN, b"", size=-512) + rest + END,
        "bundle.sig of -512 bytes, and at most|which its manifest does not name|no header",
    ),
    "of a file in no list": (
        lambda first, rest: first + member("adapters/other.safetensors.sig") + rest + END,
        "'adapters/other.safetensors.sig', which its manifest does not name",
    ),
    "of a file that is no adapter": (
        lambda first, rest: first + member("model.onnx.sig") + rest + END,
        "'model.onnx.sig', which its manifest does not name",
    ),
    "under a path to elsewhere": (
        lambda first, rest: first + member("../bundle.sig") + rest + END,
        "'../bundle.sig', which lies elsewhere",
    ),
    "twice": (
        lambda first, rest: first + member(OWN) * 2 + rest + END,
        "'bundle.sig', which comes twice or out of turn",
    ),
    "out of turn": (
        lambda first, rest: first + member(ITS) + member(OWN) + rest + END,
        "'bundle.sig', which comes twice or out of turn",
    ),
    "before the manifest": (
        lambda first, rest: member(OWN) + first + rest + END,
        "expected first, and found 'bundle.sig'",
    ),
    "behind the files": (
        lambda first, rest: first + rest + member(OWN) + END,
        "more stands in it than its manifest names",
    ),
    "after the end": (
        lambda first, rest: first + rest + END + member(OWN),
        "more stands in it than its manifest names",
    ),
    "a link": (
        lambda first, rest: first + linked(OWN, "/etc/passwd") + rest + END,
        "'bundle.sig', a link to '/etc/passwd'",
    ),
    "cut short": (
        lambda first, rest: first + header(OWN, 9000) + b"x" * 2000,
        "bundle.sig ends early",
    ),
    "something behind it": (
        lambda first, rest: first + member(OWN)[:-1] + b"x" + rest + END,
        "behind bundle.sig stands something else than zeros",
    ),
    "another file": (
        lambda first, rest: first + member("libevil.so") + rest + END,
        "'libevil.so', which its manifest does not name",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_signature_that_may_not_be_there(
    kind: str, parts: tuple[bytes, bytes], tmp_path: Path, refused: Refusal
) -> None:
    make, why = HOSTILE[kind]
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "bad.edgeft").write_bytes(make(*parts))
    refused("install", folder / "bad.edgeft", why)
    assert [path.name for path in folder.iterdir()] == ["bad.edgeft"], "nothing was written"


def test_many_signatures_are_refused_together(tmp_path: Path, refused: Refusal) -> None:
    """Each is short, and all of them are not."""
    names = [f"adapters/a{index:04}.safetensors" for index in range(1000)]
    text = ('{"files": {' + ", ".join(f'"{name}": {{"size": 0}}' for name in names) + "}}").encode()
    stream = io.BytesIO()
    for name, data in (("bundle.json", text), *((f"{name}.sig", b" " * LARGEST) for name in names)):
        stream.write(member(name, data))
    (tmp_path / "bad.edgeft").write_bytes(stream.getvalue() + END)
    refused("install", tmp_path / "bad.edgeft", "of 16384 bytes, and at most 0 are read")


def test_a_manifest_that_makes_memory(tmp_path: Path, refused: Refusal) -> None:
    """4 MiB of the shortest values would be 100 MiB of objects."""
    text = b'{"files": {}, "more": [' + b"[]," * ((MAX_MANIFEST - 100) // 3) + b"0]}"
    (tmp_path / "bad.edgeft").write_bytes(member("bundle.json", text) + END)
    refused("install", tmp_path / "bad.edgeft", "its bundle.json: holds more than .* values")


def test_a_list_that_names_a_signature(tmp_path: Path, refused: Refusal) -> None:
    for name in (OWN, ITS):
        text = f'{{"files": {{"{name}": {{"size": 2}}, "{FILE}": {{"size": 2}}}}}}'.encode()
        data = member("bundle.json", text) + member(name) + b"".join(member(each) for each in sorted((name, FILE)))
        (tmp_path / "bad.edgeft").write_bytes(data + END)
        refused("install", tmp_path / "bad.edgeft", f"files.{name}: is a signature, which no list names")


def test_files_from_before_and_with_signatures_are_read(
    parts: tuple[bytes, bytes], bundle: Path, tmp_path: Path
) -> None:
    """The negation: the same bytes with nothing wrong in them."""
    first, rest = parts
    for name, between in (("old", b""), ("new", member(OWN, b"a") + member(ITS, b"b" * LARGEST))):
        (tmp_path / name).write_bytes(first + between + rest + END)
        install(tmp_path / name, tmp_path / f"{name}-there")
    there = tmp_path / "new-there"
    assert ((there / OWN).read_bytes(), (there / ITS).read_bytes()) == (b"a", b"b" * LARGEST)
    assert not (tmp_path / "old-there" / OWN).exists()


def test_a_link_is_not_packed_as_a_signature(bundle: Path, tmp_path: Path) -> None:
    mine = copied(bundle, tmp_path / "mine")
    (tmp_path / "secret").write_text("secret")
    (mine / OWN).symlink_to(tmp_path / "secret")
    files = [Path(pack(folder, tmp_path / name)["file"]) for folder, name in ((mine, "one"), (bundle, "two"))]
    assert files[0].read_bytes() == files[1].read_bytes()
