"""The runner in an arm64 Debian (arm64_root.py): the plain wheel with aarch64 dependencies, no torch."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import arm64_root

HERE = Path(__file__).resolve().parent
ASK = """import json, sys
sys.path.insert(0, "/place")
import place_python
print(json.dumps(place_python.answers("/bundle", **json.load(open("/job/job.json")))))
"""


def missing() -> str:
    """What to do first; '' if nothing."""
    return arm64_root.lacks()


def answers(bundle: Path, questions: list[dict[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """As place_python gives them, which is also what runs there."""
    with tempfile.TemporaryDirectory() as job:
        (Path(job) / "job.json").write_text(json.dumps({"questions": questions, "tokens": tokens}))
        out = arm64_root.enter([arm64_root.PYTHON, "-c", ASK],
                               {Path(bundle).resolve(): "/bundle", HERE: "/place", Path(job): "/job"})
    found: list[dict[str, Any]] = json.loads(out)
    return found
