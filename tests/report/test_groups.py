"""Which runs are compared, and which of them no other one beats."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from edgeft.report.pareto import front

from .pages import Page, data_of, page_of, write_run


@pytest.mark.parametrize(("points", "kept"), [
    ([(1.0, 5.0), (2.0, 3.0), (3.0, 4.0), (4.0, 1.0)], [0, 1, 3]), ([(1.0, 1.0)], [0]),
    ([(1.0, 1.0), (1.0, 1.0), (1.0, 2.0)], [0, 1]), ([(2.0, 1.0), (1.0, 1.0)], [1]), ([], [])])
def test_the_pareto_front(points: list[tuple[float, float]], kept: list[int]) -> None:
    assert front(points) == kept


def test_the_pareto_front_of_many_points() -> None:
    """All on it are beaten by none; each of the others is beaten by one on it."""
    chance = random.Random(0)
    points = [(chance.random(), chance.random()) for _ in range(200)]
    kept = front(points)
    assert 1 < len(kept) < 50
    assert [points[item] for item in kept] == sorted(points[item] for item in kept)
    losses = [points[item][1] for item in kept]
    assert losses == sorted(losses, reverse=True)
    for index, (x, y) in enumerate(points):
        beaten = any(points[item][0] < x and points[item][1] < y for item in kept)
        assert beaten == (index not in kept)


def test_the_front_of_runs_is_on_the_page(runs: list[Path]) -> None:
    (group,) = data_of(*runs)["groups"]
    assert group["pareto"] == [{"measured": "on probe.jsonl", "runs": ["sharp", "gentle", "beaten"],
                                "front": ["gentle", "sharp"]}]
    text = Page(page_of(*runs)).text
    assert "gentle forgets least on probe.jsonl, +0.020 nats per token; on the Pareto front: gentle and sharp." in text
    assert "sharp has the lowest evaluation loss, 0.900 (the base has 4.000)." in text


def test_accuracy_counts_upwards_on_the_front(tmp_path: Path) -> None:
    found = {"loss": 0.1, "examples": 9}
    made = [write_run(tmp_path / name, forgot=forgot, labels=["a"], metrics={
        "eval": {"v": {**found, "accuracy": accuracy}}, "eval_base": {"v": {**found, "accuracy": 0.5}}})
        for name, accuracy, forgot in (("best", 0.9, 0.2), ("worse", 0.8, 0.3), ("gentle", 0.7, 0.1))]
    (group,) = data_of(*made)["groups"]
    assert group["pareto"][0]["front"] == ["gentle", "best"]


def test_runs_are_compared_only_where_they_can_be(tmp_path: Path) -> None:
    """Another base, other lines to measure on or another probe: another group or picture."""
    other = {"id": "b", "fingerprint": "ff" * 32}
    lines = {"eval": {"valid": {"loss": 1.0, "tokens": 51}}}
    probe = {"forgetting": 0.1, "probe": "/d/other.jsonl", "tokens": 7}
    made = [write_run(tmp_path / "a"), write_run(tmp_path / "b", base=other), write_run(tmp_path / "c", metrics=lines),
            write_run(tmp_path / "d", forgetting=probe), write_run(tmp_path / "e")]
    groups = data_of(*made)["groups"]
    assert [group["runs"] for group in groups] == [["a", "d", "e"], ["b"], ["c"]]
    assert [trade["runs"] for trade in groups[0]["pareto"]] == [["a", "e"], ["d"]]
