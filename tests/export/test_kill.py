"""A killed export leaves nothing under the final name, and the next one sweeps what it left beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import edgeft


@pytest.mark.parametrize("moment", ["model.onnx.data", "bundle.json"])
def test_kill_during_export(lora_run: Path, tmp_path: Path, moment: str) -> None:
    out = tmp_path / "bundle"
    command = ["export", lora_run, "--device", "cpu-x86_64", "--quant", "fp32", "--out", out]
    process = subprocess.Popen([sys.executable, "-m", "edgeft", *map(str, command)], stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f".bundle.partial-*/{moment}")):
        assert time.monotonic() < deadline
        assert process.poll() is None, "the export ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert list(tmp_path.glob(".bundle.partial-*"))
    edgeft(*command)
    assert (out / "bundle.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
