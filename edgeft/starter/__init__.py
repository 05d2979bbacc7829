"""The embedded default: a small model that this project trained from scratch, and sample data for one task."""

from pathlib import Path

_HERE = Path(__file__).parent
MODEL = _HERE / "model"
TRAIN = _HERE / "data" / "commands-train.jsonl"
TEST = _HERE / "data" / "commands-test.jsonl"
PROBE = _HERE / "data" / "probe.jsonl"
