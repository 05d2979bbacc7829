"""Device files from anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .conftest import Refusal

GOOD = (Path(__file__).resolve().parents[2] / "devices" / "cpu-x86_64.toml").read_text()
FILES = {
    "nothing": (b"", "missing"),
    "not text": (b"\xff\xfe", "is not TOML"),
    "deep": (b"a = " + b"[" * 50_000, "is not TOML"),
    "long": (b"#" * 2_000_000, "at most"),
    "a long number": (b"a = " + b"9" * 60_000, "is not TOML"),
    "keys in keys": (b".".join([b"a"] * 20_000) + b" = 1", "unknown key|is not TOML"),
    "infinite": (GOOD.replace("bandwidth_gb_s = ", "bandwidth_gb_s = inf #").encode(), "bandwidth_gb_s"),
    "no number": (GOOD.replace("bandwidth_gb_s = ", "bandwidth_gb_s = nan #").encode(), "bandwidth_gb_s"),
    "huge": (GOOD.replace("memory_mib = ", "memory_mib = 9999999999999999999999 #").encode(), "memory_mib"),
    "a list for a word": (GOOD.replace('quant = "int4"', 'quant = [["int4"]]').encode(), "quant"),
    "unknown": (GOOD.encode() + b"\n[evil]\nrun = 'rm'\n", "evil: unknown key"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_device_file_that_is_none(tmp_path: Path, refused: Refusal, name: str) -> None:
    data, reason = FILES[name]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "evil.toml").write_bytes(data)
    refused("device", tmp_path / "d" / "evil.toml", reason)


def test_a_pipe(tmp_path: Path, refused: Refusal) -> None:
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "d" / "evil.toml")
    refused("device", tmp_path / "d" / "evil.toml", "no plain file")
