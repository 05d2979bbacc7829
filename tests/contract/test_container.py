"""One file of several: equal contents make equal bytes, and nothing but what was written comes out."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeft.contract.container import (
    BLOCK,
    END,
    MAX_MANIFEST,
    Reader,
    check_names,
    header,
    padding,
    total_size,
    write_end,
    write_member,
)
from edgeft.contract.errors import EdgeftError, Faults

MANIFEST = b'{"files": ["a.bin", "sub/b.bin"]}'
FILES = {"a.bin": b"A" * 700, "sub/b.bin": b"B" * BLOCK}
SIZES = {name: len(data) for name, data in FILES.items()}
A, B = BLOCK + BLOCK, 2 * BLOCK + 3 * BLOCK  # where the headers of the two stand


def made(files: dict[str, bytes] = FILES, manifest: bytes = MANIFEST) -> bytes:
    stream = io.BytesIO()
    write_member(stream, "manifest.json", len(manifest), [manifest])
    for name, data in files.items():
        write_member(stream, name, len(data), [data])
    write_end(stream)
    return stream.getvalue()


def read(data: bytes, folder: Path, sizes: dict[str, int] = SIZES) -> dict[str, bytes]:
    """What comes out; nothing may appear beside the stage, whatever happens."""
    stage = folder / "stage"
    stage.mkdir()
    try:
        reader = Reader(Path("x.edgeft"), io.BytesIO(data), ["manifest.json"])
        reader.unpack(sizes, stage)
    finally:
        assert [path.name for path in folder.iterdir()] == ["stage"]
        assert not any(path.is_symlink() for path in stage.rglob("*"))
    return {path.relative_to(stage).as_posix(): path.read_bytes() for path in stage.rglob("*") if path.is_file()}


def refused(data: bytes, folder: Path, sizes: dict[str, int] = SIZES) -> str:
    with pytest.raises(EdgeftError) as found:
        read(data, folder, sizes)
    assert str(found.value).startswith("x.edgeft: ")
    return str(found.value)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    assert read(made(), tmp_path) == {"manifest.json": MANIFEST, **FILES}
    assert len(made()) == total_size([len(MANIFEST), *SIZES.values()])
    assert made() == made()


def test_tar_reads_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(made())) as tar:
        assert tar.getnames() == ["manifest.json", *FILES]
        assert {(item.mtime, item.uid, item.gid, item.uname, item.mode) for item in tar} == {(0, 0, 0, "", 0o644)}


@pytest.mark.parametrize("size", [0, 5 << 30, 9 << 30, 1 << 50])
def test_sizes_beyond_4_and_8_gib(size: int) -> None:
    assert tarfile.TarInfo.frombuf(header("model.onnx.data", size), "ascii", "strict").size == size
    assert total_size([size]) == size + -size % BLOCK + BLOCK + len(END)


def test_every_flipped_byte_is_refused_or_in_a_files_own_bytes(tmp_path: Path) -> None:
    """What is in a file is for its digest to tell; every other byte is told here."""
    whole, through = made(), 0
    contents = [range(BLOCK, BLOCK + len(MANIFEST)), range(A + BLOCK, A + BLOCK + 700), range(B, B + BLOCK)]
    contents[2] = range(B + BLOCK, B + 2 * BLOCK)
    for place in range(len(whole)):
        folder = tmp_path / str(place)
        folder.mkdir()
        data = bytearray(whole)
        data[place] ^= 0x21
        if any(place in span for span in contents):
            through += 1
            read(bytes(data), folder)
        else:
            refused(bytes(data), folder)
    assert through == len(MANIFEST) + sum(SIZES.values())


def test_cut_at_every_length_and_longer(tmp_path: Path) -> None:
    whole = made()
    for index, data in enumerate([*(whole[:size] for size in range(0, len(whole), 7)), whole + b"\0", whole + whole]):
        folder = tmp_path / str(index)
        folder.mkdir()
        refused(data, folder)
        assert not list((folder / "stage").iterdir()), "it was known before anything was written"


def test_every_flipped_byte_of_what_stands_beside_the_manifest(tmp_path: Path) -> None:
    """Its own bytes are for whoever asks for them; all others are told, or it is not taken for what it is not."""
    whole = made({"m.sig": b"signature", **FILES})
    own = range(A + BLOCK, A + BLOCK + len(b"signature"))
    for place in range(A, A + 2 * BLOCK):
        data = bytearray(whole)
        data[place] ^= 0x21
        (stage := tmp_path / str(place)).mkdir()
        reader = Reader(Path("x.edgeft"), io.BytesIO(bytes(data)), ["manifest.json"])
        if place in own:
            reader.take_beside(["m.sig"], SIZES, 20)
            reader.unpack(SIZES, stage)
            assert (stage / "m.sig").read_bytes() != b"signature"
        else:
            with pytest.raises(EdgeftError, match=r"^x.edgeft: "):
                reader.take_beside(["m.sig"], SIZES, 20)
                reader.unpack(SIZES, stage)
            assert not list(stage.iterdir())


def entry(**values: object) -> Callable[[str, int], bytes]:
    """A header with something else in it than there should be."""
    def make(name: str, size: int) -> bytes:
        info = tarfile.TarInfo(name)
        info.size = size
        for key, value in values.items():
            setattr(info, key, value)
        return info.tobuf(tarfile.GNU_FORMAT)[:BLOCK]
    return make


ATTACKS = {
    "a link to": entry(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a link to 'sub/b.bin'": entry(type=tarfile.LNKTYPE, linkname="sub/b.bin"),
    "a device": entry(type=tarfile.CHRTYPE, devmajor=1, devminor=8),
    "'a.bin', a device": entry(type=tarfile.BLKTYPE),
    "a pipe": entry(type=tarfile.FIFOTYPE),
    "a folder": entry(type=tarfile.DIRTYPE),
    "a file with holes": entry(type=tarfile.GNUTYPE_SPARSE),
    "an extended header": entry(type=tarfile.GNUTYPE_LONGNAME),
    "'a.bin', an extended header": entry(type=tarfile.XHDTYPE),
    "'/etc/cron.d/x', which lies elsewhere": entry(name="/etc/cron.d/x"),
    "'sub/../../x', which lies elsewhere": entry(name="sub/../../x"),
    "'manifest.json', which its manifest does not name": entry(name="manifest.json"),
    "'other', which its manifest does not name": entry(name="other"),
    "of 701 bytes, and declared are 700": entry(size=701),
    "of 1125899906842624 bytes": entry(size=1 << 50),
    "twice or out of turn": entry(name="sub/b.bin", size=BLOCK),
    "whose header says more": entry(mode=0o4755),
    "'a.bin', which comes twice or out of turn, or whose": entry(uid=1000, uname="root"),
}


@pytest.mark.parametrize("why", ATTACKS)
def test_headers_that_say_something_else(why: str, tmp_path: Path) -> None:
    whole = made()
    data = whole[:A] + ATTACKS[why]("a.bin", 700) + whole[A + BLOCK :]
    assert len(data) == len(whole)
    assert why in refused(data, tmp_path)


def test_the_same_file_twice(tmp_path: Path) -> None:
    twice = made({"a.bin": FILES["a.bin"], "b.bin": b""})
    data = twice.replace(header("b.bin", 0), header("a.bin", 0))
    assert "'a.bin' of 0 bytes, and declared are 700" in refused(data, tmp_path, {"a.bin": 700, "b.bin": 0})


@pytest.mark.parametrize("names", [["../x"], ["/x"], ["a//b"], ["a/./b"], ["a/"], [""], ["C:x"], ["x\\y"], ["a" * 101],
                                   ["A", "a"], ["a", "a/b"], ["a/B", "A/b"], ["a/b", "a/b/c/d"], [".hidden"], ["x\0y"],
                                   ["x\ny"], ["name."], ["ä"], ["manifest.json"], ["~x"], ["-rf"]], ids=repr)
def test_names_that_are_refused(names: list[str], tmp_path: Path) -> None:
    refused(made(), tmp_path, dict.fromkeys(names, 1))
    assert not list((tmp_path / "stage").iterdir())


def test_names_that_are_not() -> None:
    faults = Faults("x")
    check_names(["model.onnx.data", "adapters/menu-2.safetensors", "adapters/x", "vendor/ort-wasm+simd@1.mjs"], faults)
    assert faults.lines == []


@pytest.mark.parametrize("size", [-1, True, 1.5, "700", None, 1 << 70, [700]], ids=repr)
def test_sizes_that_are_none(size: object, tmp_path: Path) -> None:
    assert "a.bin: a size of" in refused(made(), tmp_path, {**SIZES, "a.bin": size})  # type: ignore[dict-item]


def test_too_many_files_and_too_large_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    assert "20,000 files" in refused(made(), tmp_path / "one", {f"f{index}": 0 for index in range(20_000)})
    (tmp_path / "two").mkdir()
    large = header("manifest.json", MAX_MANIFEST + 1) + b" " * (MAX_MANIFEST + 1) + padding(MAX_MANIFEST + 1) + END
    assert "at most" in refused(large, tmp_path / "two")


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"\0" * 1024, b"x" * 5000, END, header("a.bin", 3)], ids=repr)
def test_what_is_no_container(data: bytes, tmp_path: Path) -> None:
    refused(data, tmp_path)


def test_a_file_that_changes_while_it_is_packed() -> None:
    with pytest.raises(EdgeftError, match="7 bytes were expected, found 5"):
        write_member(io.BytesIO(), "a.bin", 7, [b"abc", b"de"])
