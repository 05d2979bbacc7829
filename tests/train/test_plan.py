"""The plan of batches: every line comes, weights and sampling say how often, and the seed alone decides the order."""

from __future__ import annotations

from collections import Counter

import pytest

from edgeft.contract.data import Example
from edgeft.train.mixture import Task
from edgeft.train.plan import per_epoch, plan_batches, shares
from edgeft.train.settings import TrainSettings
from edgeft.train.tasks import TaskSpec


def task(size: int, weight: float = 1.0) -> Task:
    return Task(TaskSpec("t", "t.jsonl", weight), "pair",
                [Example(list(range(3 + index % 7)), [False] + [True] * (2 + index % 7)) for index in range(size)])


def settings(**given: object) -> TrainSettings:
    return TrainSettings(**{"batch_size": 8, "seed": 3, **given})


def test_an_epoch_sees_every_line_once() -> None:
    batches = plan_batches([task(103)], settings())
    assert Counter(ref for batch in batches for ref in batch) == Counter((0, line) for line in range(103))


def test_weights_say_how_often_a_line_is_seen() -> None:
    batches = plan_batches([task(40, 2.0), task(40, 0.5)], settings())
    seen = Counter(ref for batch in batches for ref in batch)
    assert all(seen[0, line] == 2 for line in range(40))
    assert sum(seen[1, line] for line in range(40)) == 20


def test_what_one_epoch_leaves_out_comes_in_the_next() -> None:
    seen = Counter(ref for batch in plan_batches([task(40, 0.5)], settings(epochs=2)) for ref in batch)
    assert seen == Counter((0, line) for line in range(40))


def test_the_plan_depends_on_the_seed_alone() -> None:
    plans = [plan_batches([task(50), task(20)], settings(seed=seed, epochs=2, sampling="equal")) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


@pytest.mark.parametrize(("given", "wanted"), [
    ({}, [400, 100]), ({"sampling": "equal"}, [250, 250]),
    ({"sampling": "temperature"}, [333, 167]),  # square roots: 20 to 10
    ({"sampling": "temperature", "sampling_temperature": 1.0}, [400, 100]),
    ({"sampling": "temperature", "sampling_temperature": 1e9}, [250, 250]),
    ({"sampling_limit": 100}, [250, 250]), ({"sampling_limit": 200}, [333, 167]), ({"sampling_limit": 999}, [400, 100]),
    ({"sampling": "temperature", "sampling_limit": 25}, [250, 250])])
def test_sampling_makes_the_shares_of_an_epoch(given: dict[str, object], wanted: list[int]) -> None:
    assert per_epoch([task(400), task(100)], settings(**given)) == wanted


def test_weights_multiply_the_shares() -> None:
    assert per_epoch([task(100), task(100, 3.0)], settings(sampling="equal")) == [100, 300]
    assert per_epoch([task(100, 3.0), task(100)], settings(sampling="temperature")) == [300, 100]


def test_a_task_is_never_left_out() -> None:
    assert per_epoch([task(3000), task(1, 0.1)], settings())[1] == 1


def test_the_shares_are_counted_in_the_plan() -> None:
    tasks = [task(70), task(30)]
    plan = plan_batches(tasks, settings(sampling="equal", epochs=3))
    found = shares(tasks, plan)
    drawn = [Counter(line for batch in plan for owner, line in batch if owner == index) for index in (0, 1)]
    assert [item["examples"] for item in found] == [lines.total() for lines in drawn] == [150, 150]
    tokens = [sum(sum(tasks[index].train[line].mask) * times for line, times in drawn[index].items())
              for index in (0, 1)]
    assert [item["completion_tokens"] for item in found] == tokens
    assert found[0]["share_of_examples"] == 0.5
    assert found[0]["share_of_tokens"] == pytest.approx(tokens[0] / sum(tokens), abs=1e-4)


@pytest.mark.parametrize(("given", "said"), [({"sampling_temperature": 0.5}, "at least 1, found 0.5"),
                                             ({"sampling_temperature": float("inf")}, "finite"),
                                             ({"sampling_limit": -1}, "not be negative")])
def test_settings_that_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(**given)
