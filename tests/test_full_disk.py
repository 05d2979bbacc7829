"""Train and export on a disk that fills up: one message, and nothing under the final name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import train_run

INSIDE = """mount -t tmpfs -o size="$1" tmpfs "$2" && shift && disk="$1" && shift && "$@"
code=$?; ls -A "$disk" >&2; exit $code"""


def on_small_disk(size: str, disk: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run edgeft with a small disk mounted at `disk`, in a namespace of its own; its listing ends stderr."""
    disk.mkdir(exist_ok=True)
    command = ["unshare", "-rm", "sh", "-c", INSIDE, "sh", size, disk, sys.executable, "-m", "edgeft", *arguments]
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("mounting is not permitted here")
    return done


def test_export_on_a_full_disk(lora_run: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    done = on_small_disk("200k", disk, "export", lora_run, "--device", "cpu-x86_64", "--quant", "fp32", "--out",
                         disk / "bundle")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr
    assert done.stderr.strip().splitlines()[-1] != "bundle"


@pytest.mark.parametrize("size", ["64k", "300k"])
def test_training_on_a_full_disk(base: Path, data: Path, tmp_path: Path, size: str) -> None:
    """The first disk is too small for a checkpoint, the second for the end: neither makes a finished run."""
    disk = tmp_path / "disk"
    done = on_small_disk(size, disk, "train", "full", "--base", base, "--data", data, "--out", disk / "run",
                         "--max-steps", 3, "--save-every", 2)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr


def test_a_disk_large_enough_is_no_problem(base: Path, data: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    done = on_small_disk("8m", disk, "train", "lora", "--base", base, "--data", data, "--out", disk / "run",
                         "--max-steps", 2)
    assert done.returncode == 0
    assert train_run(tmp_path / "run", base, data, "--max-steps", 2).is_dir()
