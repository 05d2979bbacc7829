"""Files of a manifest that lie elsewhere: names that lead out, links of both kinds, and what is no file at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeft.contract.bundle import describe_file

from .conftest import Refusal
from .forge import agree, link, put, say, sparse

NAMES = [
    "../secret",
    "adapters/../../secret",
    "{secret}",
    "adapters\\..\\secret",
    "./model.onnx",
    "a//b",
    "",
    ".",
    "..",
    "C:secret",
    "model.onnx\0.txt",
    "~/secret",
    "-rf",
    "x" * 300,
    "a/" * 9 + "b",
    "file:///etc/passwd",
]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that no bundle may read."""
    path = tmp_path / "secret"
    path.write_bytes(b"secret" * 100)
    return path


@pytest.mark.parametrize("name", NAMES, ids=[repr(name[:20]) for name in NAMES])
def test_a_name_that_leads_out(mine: Path, secret: Path, refused: Refusal, name: str) -> None:
    said = name.replace("{secret}", str(secret))
    say(mine, lambda manifest: manifest["files"].update({said: describe_file(secret)}))
    refused("load", mine, "points outside the bundle, or is no plain path|is missing")


@pytest.mark.parametrize("hard", [False, True], ids=["symbolic", "hard"])
@pytest.mark.parametrize(
    "name",
    [
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "adapters/colors.safetensors",
    ],
)
def test_a_link_to_a_file_outside(mine: Path, secret: Path, refused: Refusal, name: str, hard: bool) -> None:
    link(mine / name, secret, hard=hard)
    agree(mine, name)
    refused("load", mine, "hard links" if hard else "it is a link")


def test_a_link_to_the_same_bytes(mine: Path, tmp_path: Path, refused: Refusal) -> None:
    os.rename(mine / "model.onnx", tmp_path / "elsewhere")
    (mine / "model.onnx").symlink_to(tmp_path / "elsewhere")
    refused("load", mine, "it is a link")


def test_a_linked_folder(mine: Path, tmp_path: Path, refused: Refusal) -> None:
    os.rename(mine / "adapters", tmp_path / "elsewhere")
    (mine / "adapters").symlink_to(tmp_path / "elsewhere")
    refused("load", mine, "it is a link")


@pytest.mark.parametrize("hard", [False, True], ids=["symbolic", "hard"])
def test_a_linked_manifest(mine: Path, tmp_path: Path, refused: Refusal, hard: bool) -> None:
    os.rename(mine / "bundle.json", tmp_path / "elsewhere.json")
    (os.link if hard else os.symlink)(tmp_path / "elsewhere.json", mine / "bundle.json")
    refused("load", mine, "hard links" if hard else "it is a link")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "model.onnx.data"])
def test_a_pipe_is_not_waited_for(mine: Path, refused: Refusal, name: str) -> None:
    (mine / name).unlink()
    os.mkfifo(mine / name)
    refused("load", mine, "no plain file")


def test_a_device_without_end(mine: Path, refused: Refusal) -> None:
    (mine / "tokenizer.json").unlink()
    (mine / "tokenizer.json").symlink_to("/dev/zero")
    refused("load", mine, "it is a link")


def test_a_file_that_nobody_listed(mine: Path, refused: Refusal) -> None:
    say(mine, lambda manifest: manifest["files"].pop("chat_template.jinja"))
    (mine / "chat_template.jinja").write_text("{{ 'x' * 9 }}")
    refused("load", mine, r"chat_template.jinja: is there and not in the manifest")


def test_an_adapter_that_is_another_file(mine: Path, refused: Refusal) -> None:
    say(mine, lambda manifest: manifest["adapters"]["colors"].update(file="model.onnx"))
    refused("load", mine, r"adapters\.colors  declared model\.onnx")


def test_a_file_larger_than_it_says(mine: Path, refused: Refusal) -> None:
    sparse(mine / "model.onnx", 1 << 40)
    refused("load", mine, r"model\.onnx: has 1099511627776 bytes; at most")


def test_a_file_as_large_as_it_says(mine: Path, refused: Refusal) -> None:
    """A sparse tokenizer of a terabyte: nothing is hashed that could not be read anyway."""
    sparse(mine / "tokenizer.json", 1 << 40)
    say(mine, lambda manifest: manifest["files"]["tokenizer.json"].update(size=1 << 40))
    refused("load", mine, r"tokenizer\.json: has 1099511627776 bytes; at most")


def test_the_graph_of_another_format(mine: Path, refused: Refusal) -> None:
    data = (mine / "model.onnx").read_bytes()
    for name in ("model.onnx", "model.plain.onnx"):
        put(mine, name, b"\x12\x08xxORTMxx" + data)
    refused("load", mine, "onnxruntime's own format")
