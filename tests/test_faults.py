"""benchmarks/faults.py: a seeded sample of its points, and the proof that it finds a writer that is not careful."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[1] / "benchmarks" / "faults.py"


def faults(*words: object) -> subprocess.CompletedProcess[str]:
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("faults.py needs Linux and gcc")
    return subprocess.run([sys.executable, str(PROGRAM), *map(str, words)], capture_output=True, text=True, check=False)


def test_a_sample_of_all_points_leaves_the_old_or_the_new() -> None:
    done = faults("--sample", 2, "--seed", 1)
    found = re.search(r"^(\d+) points, (\d+) bad states$", done.stdout, re.MULTILINE)
    assert found, done.stderr
    assert (int(found[2]), done.returncode) == (0, 0), done.stderr
    assert int(found[1]) > 50


@pytest.mark.parametrize("mode", ["kill", "plug", "ENOSPC"])
def test_a_careless_writer_is_found(mode: str) -> None:
    done = faults("--only", "naive", "--modes", mode)
    found = re.search(r"^(\d+) points, (\d+) bad states$", done.stdout, re.MULTILINE)
    assert found, done.stderr
    assert int(found[2]) > 0
    assert done.returncode == 1
