"""Sizes: deep, huge or many-valued headers are refused before anything of their size is made."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from edgeft.contract.tensors import TensorFile

from .conftest import Refusal
from .forge import manifest_of, put, say, sparse

MANIFESTS: dict[str, tuple[bytes, str]] = {
    "deep": (b"[" * 100_000, "is not JSON"),
    "deep objects": (b'{"a":' * 100_000, "is not JSON"),
    "many lists": (b'{"a":[' + b"[]," * 1_000_000 + b"[]]}", "more than 500,000 values"),
    "many objects": (b'{"a":[' + b"{}," * 1_000_000 + b"{}]}", "more than 500,000 values"),
    "many keys": (b"{" + b",".join(b'"%d":0' % key for key in range(300_000)) + b"}", "more than 500,000 values"),
    "a long number": (b'{"format":' + b"9" * 1_000_000 + b"}", "is not JSON"),
    "a long text": (b'{"format": 1, "a": "' + "\N{GRINNING FACE}".encode() + b"x" * 4_000_000 + b'"}', "must be"),
    "not text": (b"\xff\xfe{\x00}\x00", "is not JSON"),
    "an array": (b"[1]", "must hold a JSON object"),
    "nothing": (b"", "is not JSON"),
    "zeros": (b"\0" * 1000, "is not JSON"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_beyond_measure(mine: Path, refused: Refusal, name: str) -> None:
    data, reason = MANIFESTS[name]
    (mine / "bundle.json").write_bytes(data)
    refused("load", mine, reason)


def test_a_manifest_of_terabytes(mine: Path, refused: Refusal) -> None:
    sparse(mine / "bundle.json", 1 << 40)
    refused("load", mine, r"has 1099511627776 bytes; at most 4194304")


NUMBERS: list[tuple[str, Any, str]] = [
    ("context", 1 << 60, "context: must be 1 to"),
    ("context", 0, "context: must be"),
    ("context", True, "context: must"),
    ("linears", [{"name": "a", "modules": ["b"], "in": 1 << 60, "out": [1]}], "linears: must be"),
    ("slots", {"lowrank": [{"name": "a", "modules": ["b", "b"], "in": 1, "out": [1, 1]}]}, r"slots\.lowrank: must be"),
    ("slots", {"prefix": [[1, 1 << 60]]}, r"slots\.prefix: must"),
    ("slots", {"scale": 7}, r"slots\.scale: must"),
    ("slots", {"lowrank": [{"name": "a", "modules": ["b"], "in": 1, "out": [1, 2]}]}, r"slots\.lowrank: must be"),
    ("generation", {"eos": [-1]}, "generation: must"),
    ("generation", {"eos": 7}, "generation: must"),
    ("generation", {"temperature": "hot"}, "generation: must"),
    ("parity", {"replay": [{"ids": 7}]}, "parity: must"),
    ("parity", {"replay": [{"ids": [0] * 3, "tokens": [1 << 40], "adapters": {}}]}, "parity: must"),
    ("quant", {"kind": 4}, "quant: must hold kind"),
    ("quant", [], "quant: must"),
    ("prompt", "raw", "prompt: must"),
    ("prompt", {"kind": "code"}, "is not one of raw"),
    ("default_adapter", ["a"], "default_adapter: must"),
    ("files", {"model.onnx": {"size": -1, "sha256": "0" * 64}}, r"files\.model\.onnx: must hold"),
    ("files", {"model.onnx": {"size": True, "sha256": "0" * 64}}, r"files\.model\.onnx: must hold"),
    ("files", {"model.onnx": {"size": 4, "sha256": "../../secret"}}, r"files\.model\.onnx: must hold"),
    ("base", {"fingerprint": ["a"]}, r"base\.fingerprint: must"),
    ("format", True, "bundle format declared True"),
    ("format", 1.0, "bundle format declared 1.0"),
]


@pytest.mark.parametrize(
    ("key", "value", "reason"), NUMBERS, ids=[f"{key} {index}" for index, (key, *_) in enumerate(NUMBERS)]
)
def test_a_manifest_with_values_that_cannot_be(mine: Path, refused: Refusal, key: str, value: Any, reason: str) -> None:
    say(mine, lambda manifest: manifest.update({key: value}))
    refused("load", mine, reason, sessions=1)


def device(**parts: Any) -> Any:
    return lambda manifest: manifest["device"].update(parts)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"cpu": {"threads": 1 << 40}}, "threads: must"),
        ({"cpu": {"threads": 0}}, "threads: must"),
        ({"limits": {"budget_mib": -5}}, "budget_mib"),
        ({"run": {"provider": 5, "options": {}}}, "must hold provider"),
        ({"run": {"provider": "EvilExecutionProvider", "options": {}}}, "provider is not installed"),
        ({"run": {"provider": "CPUExecutionProvider", "options": {"backend_path": "libevil.so"}}}, "names a file"),
        ({"run": {"provider": "CPUExecutionProvider", "options": {"ModelCacheDirectory": "x"}}}, "names a file"),
        ({"run": {"provider": "CPUExecutionProvider", "options": {"device": "../../evil"}}}, "names a file"),
        ({"run": {"provider": "CPUExecutionProvider", "options": {"custom_library": "x"}}}, "names a file"),
        ({"run": {"provider": "CPUExecutionProvider", "options": {"device": 5}}}, "texts by name"),
    ],
)
def test_a_device_that_asks_for_more(mine: Path, refused: Refusal, parts: dict[str, Any], reason: str) -> None:
    say(mine, device(**parts))
    refused("load", mine, reason)


def tokenizer(mine: Path, **parts: Any) -> bytes:
    """The tokenizer's file with parts replaced."""
    return json.dumps({**json.loads((mine / "tokenizer.json").read_text()), **parts}).encode()


def grower(times: int) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * times,
    }


def around(count: int) -> dict[str, Any]:
    special = {"<s>": {"id": "<s>", "ids": [1] * count, "tokens": ["<s>"] * count}}
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special,
    }


def test_tokenizers_beyond_measure(mine: Path, refused: Refusal) -> None:
    whole = (mine / "tokenizer.json").read_bytes()
    cases: list[tuple[bytes, str]] = [
        (b"[" * 200_000, "cannot be read"),
        (b'{"model":' * 50_000, "cannot be read"),
        (b"{}", "cannot be read"),
        (b'{"a":[' + b"0," * 3_100_000 + b"0]}", "more than 3,000,000 values"),
        (whole[:-40], "cannot be read"),
        (b"\x80\x04pickle", "cannot be read"),
        (tokenizer(mine, normalizer=grower(30)), "normalizer makes up to 1,073,741,824 characters of one"),
        (tokenizer(mine, normalizer={"type": "Prepend", "prepend": "x" * 5000}), "normalizer makes up to 5,000"),
        (tokenizer(mine, decoder={"type": "Sequence", "decoders": grower(20)["normalizers"]}), "decoder makes up to"),
        (tokenizer(mine, post_processor=around(1000)), "puts 1,000 tokens around"),
    ]
    for data, reason in cases:
        put(mine, "tokenizer.json", data)
        refused("load", mine, reason)


def test_a_growing_tokenizer_within_limits_is_taken(mine: Path, watcher: Any) -> None:
    put(mine, "tokenizer.json", tokenizer(mine, normalizer=grower(3)))
    assert "answer" in watcher("load", mine)


def test_a_tokenizer_of_gigabytes(mine: Path, refused: Refusal) -> None:
    sparse(mine / "tokenizer.json", 1 << 30)
    say(mine, lambda manifest: manifest["files"]["tokenizer.json"].update(size=1 << 30))
    refused("load", mine, r"has 1073741824 bytes; at most")


def raw(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(**parts: Any) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **parts}}).encode()


ADAPTERS: dict[str, tuple[bytes, str]] = {
    "no header": (b"", "not a safetensors"),
    "7 bytes": (b"1234567", "not a safetensors"),
    "length of 64 bits": (raw(b"{}", length=(1 << 64) - 1), "not a safetensors"),
    "length past the end": (raw(b"{}", length=100), "not a safetensors"),
    "a header of 100 MB": (raw(b"{" + b" " * 100_000_000 + b"}"), "not a safetensors"),
    "many values": (raw(b'{"a":[' + b"0," * 600_000 + b"0]}"), "more than 500,000 values"),
    "deep": (raw(b'{"a":' * 100_000), "is not JSON"),
    "an array": (raw(b"[]"), "must hold a JSON object"),
    "overflow": (raw(entry(shape=[1 << 61, 1 << 61], data_offsets=[0, 0])), "claims bytes"),
    "below zero": (raw(entry(shape=[-1])), "whole numbers"),
    "a fraction": (raw(entry(shape=[1.0])), "whole numbers"),
    "past the end": (raw(entry(data_offsets=[0, 4])), "claims bytes"),
    "many dimensions": (raw(entry(shape=[1] * 400), b"1234"), "dimensions"),
    "no dtype": (raw(entry(dtype="F4")), "F4"),
    "a hole": (raw(entry(data_offsets=[4, 8]), b"12345678"), "claims bytes"),
    "bytes of nobody": (raw(entry(), b"12345678"), "belong to no tensor"),
    "offsets of nothing": (raw(entry(data_offsets=[]), b"1234"), "broken safetensors header"),
    "overlap": (
        raw(
            json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}).encode(),
            b"1234",
        ),
        "claims bytes",
    ),
    "metadata of numbers": (raw(b'{"__metadata__":{"a":1}}'), "strings"),
    "a pickle": (b"\x80\x04\x95\x0a\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n", "is pickled"),
    "a zip of pickles": (b"PK\x03\x04" + b"\0" * 100, "is pickled"),
    "html": (b"<html>" * 40, "not a safetensors"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_is_no_file_of_tensors(bundle: Path, tmp_path: Path, refused: Refusal, name: str) -> None:
    data, reason = ADAPTERS[name]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.safetensors").write_bytes(data)
    refused("adapter", tmp_path / "a" / "a.safetensors", reason, sessions=1, bundle=str(bundle), allowed=[str(bundle)])


def test_an_adapter_of_another_kind_of_numbers(mine: Path, refused: Refusal) -> None:
    path = mine / "adapters" / "colors.safetensors"
    file = TensorFile(path)
    header = json.loads(path.read_bytes()[8 : 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]])
    assert header
    data = path.read_bytes().replace(b'"F32"', b'"I32"')
    assert len(data) == len(path.read_bytes())
    assert file
    put(mine, "adapters/colors.safetensors", data)
    refused("load", mine, "declared one of F32", sessions=1, adapters={"colors": 1.0})


def test_the_manifest_is_sealed(mine: Path) -> None:
    assert "digest" in manifest_of(mine)


def test_a_tokenizer_that_names_a_token_it_does_not_hold(mine: Path, refused: Refusal) -> None:
    """The library panics at the first text, with an error that no `except Exception` catches."""
    broken = around(1)
    broken["single"][0]["SpecialToken"]["id"] = "<t>"
    put(mine, "tokenizer.json", tokenizer(mine, post_processor=broken))
    refused("load", mine, r"cannot be (used|read)")


def test_a_tokenizer_of_more_tokens_than_the_graph_has(mine: Path, refused: Refusal) -> None:
    held = json.loads((mine / "tokenizer.json").read_text())
    held["model"]["vocab"]["a"] = 4999
    put(mine, "tokenizer.json", json.dumps(held).encode())
    refused("load", mine, "its tokenizer gives token 4999, and its graph has", sessions=1)
