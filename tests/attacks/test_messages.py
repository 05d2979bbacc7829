"""Names in a stranger's file come into messages: a terminal must not obey them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeft.contract.errors import EdgeftError, UsageError, printable

from .conftest import Refusal
from .forge import say
from .test_sizes import raw

NAMES = ["\x1b[2J\x1b[31mall is well", "\x1b]0;title\x07", "a\rb", "a\x08\x08\x08", "\u202egnp.exe", "\x9b2J", "\x00"]


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name) for name in NAMES])
def test_an_adapter_with_such_a_name(bundle: Path, tmp_path: Path, refused: Refusal, name: str) -> None:
    header = {"__metadata__": {"base_fingerprint": name}, name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    path = tmp_path / "own" / "a.safetensors"
    path.parent.mkdir()
    path.write_bytes(raw(json.dumps(header).encode(), b"1234"))
    said = refused("adapter", path, "no such slot", sessions=1, bundle=str(bundle), allowed=[str(bundle)])
    assert printable(said) == said


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name) for name in NAMES])
def test_a_manifest_with_such_a_name(mine: Path, refused: Refusal, name: str) -> None:
    say(mine, lambda manifest: manifest["files"].update({name: {"size": 1, "sha256": "0" * 64}}))
    said = refused("load", mine, "points outside")
    assert printable(said) == said


def test_what_is_text_stays() -> None:
    for text in ("a line\nand\tanother", "\u00e9\u4f60\U0001f600", ""):
        assert printable(text) == text
        assert str(EdgeftError(text)) == str(UsageError(text)) == text
    assert printable("a\x1bb") == "a\\x1bb"
