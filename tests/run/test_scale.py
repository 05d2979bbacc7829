"""The largest scale within a budget, on forgetting that is known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from edgeft.contract.data import Example
from edgeft.run.scale import NEAR, SMALLEST, TRIES, bounded, largest_scale

CURVES: dict[str, Callable[[float], float]] = {
    "a power": lambda s: 2.6 * s**1.3,
    "a steep power": lambda s: 4.0 * s**3,
    "helpful while small": lambda s: 3.0 * s * s - 0.3 * s,
    "saturating": lambda s: 2.0 * math.tanh(3 * s) ** 2,
    "a step": lambda s: 0.01 * s + 2.0 / (1 + math.exp(-40 * (s - 0.6))),
}


class Asked:
    """A curve that remembers at which scales it was measured."""

    def __init__(self, curve: Callable[[float], float]) -> None:
        self.curve, self.at = curve, [0.0][:0]

    def __call__(self, scale: float) -> float:
        self.at.append(scale)
        return self.curve(scale)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("budget", [0.1, 0.3, 0.5])
def test_it_meets_the_budget_from_below(name: str, budget: float) -> None:
    asked = Asked(CURVES[name])
    scale, known = largest_scale(asked, budget)
    assert scale is not None
    assert SMALLEST <= scale < 1
    assert NEAR[0] * budget <= CURVES[name](scale) <= budget
    assert known[scale] == CURVES[name](scale)
    assert len(asked.at) == len(set(asked.at)) <= TRIES
    assert scale == round(scale, 4)


def test_a_power_takes_few_measurements() -> None:
    asked = Asked(CURVES["a power"])
    largest_scale(asked, 0.2)
    assert len(asked.at) <= 5


def test_what_is_within_already_stays_as_it_is() -> None:
    asked = Asked(CURVES["a power"])
    assert largest_scale(asked, 2.6) == (1.0, {1.0: 2.6})
    assert asked.at == [1.0]
    assert largest_scale(asked, 2.5999)[0] != 1.0


def test_no_scale_within_is_told_with_the_figures() -> None:
    scale, known = largest_scale(lambda s: 0.2 + s, 0.1)
    assert scale is None
    assert [known[s] for s in (1.0, 0.5, SMALLEST)] == pytest.approx([1.2, 0.7, 0.25])
    assert largest_scale(lambda s: 0.2 + s, 0.26)[0] == pytest.approx(0.057, abs=3e-3)


def test_a_budget_of_nothing_takes_what_forgets_nothing() -> None:
    scale, known = largest_scale(CURVES["helpful while small"], 0.0)
    assert scale == pytest.approx(0.1, abs=1e-3)
    assert known[scale] <= 0
    assert largest_scale(CURVES["a power"], 0.0)[0] is None


def test_noise_does_not_keep_it_going() -> None:
    asked = Asked(lambda s: 2 * s + 0.5 * math.sin(1e4 * s))
    scale, known = largest_scale(asked, 0.7)
    assert len(asked.at) <= TRIES + 2
    assert scale is None or known[scale] <= 0.7


def test_measured_lines_are_bounded_and_evenly_far_apart() -> None:
    lines = [Example([index] * 10, [True] * 10) for index in range(100)]
    assert bounded(lines, 2000) == lines
    some = bounded(lines, 250)
    assert [line.ids[0] for line in some] == [4 * index for index in range(25)]
    assert bounded(lines, 1) == lines[:1]
