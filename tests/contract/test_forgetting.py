"""Means with bootstrap intervals, grammar pairs, and what a person is told of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeft.contract.data import Example
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.forgetting import (
    compare_losses,
    compare_pairs,
    compare_samples,
    describe_forgetting,
    interval,
    read_pairs,
    with_loss,
)
from tests.conftest import lines


class Words:
    """A tokenizer of one token per word; with `first` it opens each text."""

    def __init__(self, first: int | None = None) -> None:
        self.first = first

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Words:
        self.ids = [self.first] * (add_special_tokens and self.first is not None) + [
            100 + len(word) for word in sequence.split()]
        return self


def test_the_interval_of_a_mean_is_the_normal_one_where_there_are_many_lines() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    low, high = interval(values.tolist(), [1] * 2000)
    error = values.std() / 2000**0.5
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [interval(rng.exponential(1.0, 100).tolist(), [1] * 100) for _ in range(200)]
    assert 0.88 < np.mean([low <= 1 <= high for low, high in found]) < 0.99
    assert np.mean([low <= 1.5 <= high for low, high in found]) < 0.2


def test_lines_are_drawn_whole_and_weigh_by_their_tokens() -> None:
    assert interval([5.0, 50.0, 20.0], [10, 100, 40]) == [0.5, 0.5]  # each line has the same mean
    low, high = interval([5.0, 0.0], [10, 1000])
    assert (low, high) == (0.0, 0.5)


def test_the_interval_is_the_same_for_the_same_lines_and_paired() -> None:
    rng = np.random.default_rng(2)
    base, change = rng.normal(100, 30, 50), rng.normal(1, 0.1, 50)
    found = compare_losses([10] * 50, base.tolist(), (base + change).tolist(), [2.0] * 50)
    assert found == compare_losses([10] * 50, base.tolist(), (base + change).tolist(), [2.0] * 50)
    low, high = found["interval"]
    assert low < found["forgetting"] < high
    assert high - low < 0.01  # the lines' own spread, a hundred times as large, cancels
    assert found["kl"] == pytest.approx(0.2)
    assert found["forgetting"] == pytest.approx(found["tuned_loss"] - found["base_loss"])
    shuffled = compare_losses([10] * 50, base.tolist(), (base[::-1] + change).tolist(), [2.0] * 50)
    assert shuffled["interval"][1] - shuffled["interval"][0] > 0.5


def test_a_pair_is_right_where_the_good_sentence_is_likelier(tmp_path: Path) -> None:
    base, tuned = [1.0, 2.0, 1.0, 2.0, 3.0, 2.0, 2.0, 2.0], [1.0, 2.0, 3.0, 2.0, 3.0, 2.0, 3.0, 2.0]
    found = compare_pairs(tmp_path / "z.jsonl", base, tuned)
    assert (found["pairs"], found["base_accuracy"], found["accuracy"]) == (4, 0.5, 0.25)  # a tie is not right
    assert found["interval"][0] <= 0.25 <= found["interval"][1]
    assert found["change_interval"][0] <= -0.25 <= found["change_interval"][1]
    alone = compare_pairs(tmp_path / "z.jsonl", None, tuned)
    assert (alone["base_accuracy"], alone["accuracy"]) == (None, 0.25)


def test_pairs_are_scored_behind_a_first_token(tmp_path: Path) -> None:
    path = lines(tmp_path / "z.jsonl", [{"good": "a dog runs", "bad": "a dogs runs", "paradigm": "x"}])
    for tokenizer, start in ((Words(first=1), 2), (Words(), 1)):
        good, bad = read_pairs(path, tokenizer, start, 16)
        assert good.ids == [1, 101, 103, 104]
        assert bad.ids == [1, 101, 104, 104]
        assert good.mask == [False, True, True, True]
    assert read_pairs(path, Words(), None, 16)[0].ids == [101, 103, 104]  # nothing there to open it


def test_lines_without_a_predicted_token_do_not_count(tmp_path: Path) -> None:
    empty, whole = Example([1], [False]), Example([1, 2], [False, True])
    assert with_loss(tmp_path, [[empty], [empty, whole]]) == [[empty, whole]]
    with pytest.raises(EdgeftError, match="no line has two tokens"):
        with_loss(tmp_path, [[empty]])


@pytest.mark.parametrize(("record", "said"), [({"good": "a b"}, "line 1: needs 'bad'"),
                                              ({"good": 3, "bad": "x"}, "line 1: needs 'good'"),
                                              ({"good": "a b", "bad": " "}, "line 1: needs 'bad'"),
                                              ({"good": "a", "bad": "a b"}, "pair 1: 'good' has 1 tokens"),
                                              ({"good": "a b", "bad": "a b c d e"}, "pair 1: 'bad' has 5 tokens")])
def test_a_broken_pair_is_told(tmp_path: Path, record: dict, said: str) -> None:
    with pytest.raises(EdgeftError, match=said):
        read_pairs(lines(tmp_path / "z.jsonl", [record]), Words(), None, 4)
    with pytest.raises(UsageError, match="cannot be read"):
        read_pairs(tmp_path / "none", Words(), None, 4)


def test_a_person_is_told_what_was_measured() -> None:
    probe = compare_losses([10, 20], [10.0, 20.0], [12.0, 26.0], [3.0, 3.0])
    said = describe_forgetting({**probe, "own_samples": None, "pairs": None})
    assert said == ["forgetting: +0.267 [+0.200, +0.300] nats per token on the probe, KL from the base 0.200"]
    own = describe_forgetting({"forgetting": None, "own_samples": compare_samples([8, 8], [4.0, 4.0])})
    assert own == ["forgetting: KL from the base 0.500 [0.500, 0.500] nats per token on 2 texts that the base wrote "
                   "itself (16 tokens)"]
    pairs = describe_forgetting({"pairs": compare_pairs(Path("z"), [1.0, 2.0], [2.0, 1.0])})
    assert pairs == ["grammar: 100.0% before, 0.0% [0.0%, 0.0%] of 1 pairs right"]
    assert describe_forgetting({"forgetting": 1.5}) == ["forgetting: +1.500 nats per token on the probe"]  # of old runs
    assert describe_forgetting(None) == []
