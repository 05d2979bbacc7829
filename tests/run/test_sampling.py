"""Sampling against what the definitions say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.run.sampling import Sampler

LOGITS = np.log(np.asarray([0.5, 0.25, 0.15, 0.08, 0.02], np.float32))


def drawn(**options: float) -> Counter:
    sampler = Sampler(seed=1, **options)
    return Counter(sampler(LOGITS, []) for _ in range(4000))


def test_temperature_zero_is_greedy() -> None:
    assert Sampler()(LOGITS, []) == 0


def test_draws_follow_the_distribution() -> None:
    counts = drawn(temperature=1.0)
    assert all(abs(counts[token] / 4000 - np.exp(LOGITS[token])) < 0.03 for token in range(5))


@pytest.mark.parametrize(("options", "kept"), [
    ({"top_k": 2}, {0, 1}), ({"top_p": 0.7}, {0, 1}), ({"top_p": 0.76}, {0, 1, 2}), ({"min_p": 0.25}, {0, 1, 2}),
    ({"min_p": 0.31}, {0, 1}), ({"top_k": 1}, {0}), ({"top_p": 0.01}, {0})])
def test_filters_keep_what_they_should(options: dict[str, float], kept: set[int]) -> None:
    assert set(drawn(temperature=1.0, **options)) == kept


def test_low_temperature_sharpens() -> None:
    assert drawn(temperature=0.3)[0] > drawn(temperature=1.0)[0] > drawn(temperature=3.0)[0]


def test_the_penalty_turns_to_unseen_tokens() -> None:
    assert Sampler(repetition_penalty=3.0)(np.asarray([2.0, 1.5, -1.0], np.float32), [0]) == 1
    assert Sampler(repetition_penalty=3.0)(np.asarray([-1.0, -1.5], np.float32), [0]) == 1


def test_a_broken_output_is_an_error_not_text() -> None:
    with pytest.raises(EdgeftError, match="not a number"):
        Sampler()(np.asarray([np.nan, 1.0], np.float32), [])


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="temperature -1"):
        Sampler(temperature=-1)
