"""A byte that was flipped, and a file that was cut: `verify` and loading refuse, for a seeded sample of all of them.

`benchmarks/every_byte.py` does it for each byte of a bundle.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from edgeft.contract.bundle import MANIFEST, read_bundle
from edgeft.contract.errors import EdgeftError, Faults
from edgeft.run import load
from edgeft.run.adapters import open_adapter
from edgeft.run.verify import examine

SAMPLE = 4  # of each file, flipped and cut


def names(folder: Path) -> list[str]:
    """All of a bundle's files."""
    return [MANIFEST, *read_bundle(folder).manifest["files"]]


def damages(data: bytes, draw: random.Random) -> list[bytes]:
    """The same file flipped somewhere, or cut."""
    places = [draw.randrange(len(data)) for _ in range(SAMPLE)] + [0, len(data) - 1]
    flipped = [data[:place] + bytes([data[place] ^ draw.randrange(1, 256)]) + data[place + 1 :] for place in places]
    return [*flipped, *(data[: draw.randrange(len(data))] for _ in range(SAMPLE)), b"", data[:-1]]


def examined(folder: Path) -> list[str]:
    """What `verify` finds before it runs anything."""
    try:
        bundle = read_bundle(folder)
    except EdgeftError as error:
        return [str(error)]
    faults = Faults("found")
    examine(bundle, faults)
    return faults.lines


def test_every_file_of_a_bundle(mine: Path) -> None:
    draw = random.Random(0)
    assert examined(mine) == []
    for name in names(mine):
        whole = (mine / name).read_bytes()
        for data in damages(whole, draw):
            (mine / name).write_bytes(data)
            found = examined(mine)
            assert found, (name, len(data))
            assert any(name.rpartition("/")[2] in line or "JSON" in line for line in found), (name, found)
            with pytest.raises(EdgeftError):
                load(mine).generate("a", adapters={"colors": 1.0}, max_tokens=1)
        (mine / name).write_bytes(whole)
    assert examined(mine) == []


def test_an_adapter_beside_a_model(mine: Path, tmp_path: Path) -> None:
    """A stranger's file has no digest in the manifest: its header and its numbers are all there is to check."""
    bundle, draw = read_bundle(mine), random.Random(1)
    whole = (mine / "adapters" / "colors.safetensors").read_bytes()
    path = tmp_path / "a.safetensors"
    for size in {0, 7, 8, 9, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(40))}:
        path.write_bytes(whole[:size])
        with pytest.raises(EdgeftError):
            open_adapter("a", path, bundle).checked.result()


def test_all_that_is_wrong_is_told(mine: Path) -> None:
    """Not the first of it."""
    for name in ("model.onnx", "model.onnx.data", "tokenizer.json", "adapters/colors.safetensors"):
        data = bytearray((mine / name).read_bytes())
        data[len(data) // 2] ^= 1
        (mine / name).write_bytes(data)
    (mine / "model.plain.onnx").unlink()
    said = "\n".join(examined(mine))
    for name in (
        "model.onnx ",
        "model.onnx.data ",
        "tokenizer.json ",
        "adapters/colors.safetensors ",
        "model.plain.onnx",
    ):
        assert name in said, said


def test_a_change_while_the_graph_is_opened(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are another file after they were hashed."""
    from edgeft.run import session

    real = session.open_graph

    def swap(*arguments: Any) -> Any:
        opened = real(*arguments)
        data = (mine / "model.onnx.data").read_bytes()
        (mine / "other").write_bytes(data)
        (mine / "other").replace(mine / "model.onnx.data")
        return opened

    monkeypatch.setattr(session, "open_graph", swap)
    with pytest.raises(EdgeftError, match="changed while it was open"):
        load(mine)
