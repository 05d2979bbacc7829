"""Drafts make fewer passes and never another answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.run import Model
from edgeft.run.lookup import KNOWN, REMEMBERED, Drafting, Habits, Lookup
from tests.run.conftest import MIXES, PROMPTS, open_model

LOOP = "cat dog " * 12


class Eager(Drafting):
    """Drafts whatever it can, right or not, so that no clock decides what is tried."""

    def draft(self, so_far: Lookup, most: int) -> list[int]:
        self.first, self.next = dict.fromkeys(self.first, 0.95), 0.95
        self.costs._slope = 1e-9
        return super().draft(so_far, most)


class EagerHabits(Habits):
    """Nothing is known to be dear or wrong."""

    def __init__(self) -> None:
        self.all: dict[tuple[str, ...], Drafting] = defaultdict(Eager)

    def of(self, adapters: Iterable[str]) -> Drafting:
        return self.all[tuple(adapters)]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    monkeypatch.setattr(model.engine, "drafting", EagerHabits())


@pytest.fixture(scope="module", params=[False, True], ids=["one-graph", "several"])
def model(request: pytest.FixtureRequest, bundle: Path, kinds: dict[str, Path]) -> Model:
    return open_model(bundle, kinds, keep_prompts=0, several=request.param)


def both(model: Model, prompt: str, mix: dict[str, float], **options: Any) -> tuple[Any, Any]:
    """With drafts and without."""
    return (model.generate(prompt, adapters=mix, raw=True, **options),
            model.generate(prompt, adapters=mix, raw=True, lookup=False, **options))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("mix", MIXES)
def test_greedy_answers_stay_the_same(model: Model, mix: dict[str, float]) -> None:
    fewer = 0
    for prompt in [*PROMPTS, LOOP, "one two three " * 8]:
        found, wanted = both(model, prompt, mix, max_tokens=40)
        assert found.tokens == wanted.tokens
        assert (found.text, found.finish) == (wanted.text, wanted.finish)
        assert wanted.passes == len(wanted.tokens) - 1
        assert found.passes <= wanted.passes
        fewer += wanted.passes - found.passes
    assert fewer > 0


class Says:
    """Stands for a model that says a known text, whatever it is given."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch, prompt: int, says: list[int]) -> None:
        self.text, self.width = [0] * prompt + says, model.graphs.vocabulary
        monkeypatch.setattr("edgeft.run.lanes.Lanes._pass", lambda *about: self.run(*about))

    def run(self, lanes: Any, start: int, stop: int, ids: np.ndarray[Any, Any], keep: int) -> np.ndarray[Any, Any]:
        length = int(lanes.lengths[start])
        assert length + ids.shape[1] <= lanes.capacity
        lanes.lengths[start:stop] += ids.shape[1]
        logits = np.zeros((stop - start, ids.shape[1], self.width), np.float32)
        for place in range(ids.shape[1]):
            logits[0, place, (self.text + [9] * 300)[length + place + 1]] = 1
        return logits[:, -keep:] if keep else logits


def say(model: Model, monkeypatch: pytest.MonkeyPatch, says: list[int], **options: Any) -> tuple[Any, Any]:
    """An answer of that text to a prompt that holds its beginning, with drafts and without."""
    prompt = "the red cat runs a tree the"
    count = len(model.encode(prompt, {}, raw=True))
    with monkeypatch.context() as patch:
        Says(model, patch, count, says)
        return both(model, prompt, {}, **options)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("most", range(1, 40, 3))
def test_the_length_ends_an_answer_inside_a_draft(model: Model, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    found, wanted = say(model, monkeypatch, [7, 8, 9, 10] * 12, max_tokens=most)
    assert found.tokens == wanted.tokens == ([7, 8, 9, 10] * 12)[:most]
    assert found.finish == wanted.finish == "length"
    if most > 12:
        assert found.passes < wanted.passes * 2 // 3


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("at", range(9, 24))
def test_eos_ends_an_answer_inside_a_draft(model: Model, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The draft goes over the end: the same tokens came before with the end in their midst."""
    monkeypatch.setattr(model, "eos", frozenset({11}))
    says = [[20, 21, 22, 23, 24, 25][index % 6] for index in range(40)]
    says[at] = 11
    found, wanted = say(model, monkeypatch, says, max_tokens=40)
    assert found.tokens == wanted.tokens == says[: at + 1]
    assert found.finish == wanted.finish == "eos"
    assert found.passes < wanted.passes


@pytest.mark.usefixtures("eager")
def test_a_stop_text_ends_an_answer_inside_a_draft(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    words = model.encode(" red blue small cat", {}, raw=True)[1:]
    for word in (" blue", "l", "cat red", "all cat red b"):
        found, wanted = say(model, monkeypatch, words * 8, max_tokens=40, stop=[word])
        assert (found.text, found.tokens, found.finish) == (wanted.text, wanted.tokens, "stop")
        assert word not in found.text


@pytest.mark.usefixtures("eager")
def test_the_context_ends_an_answer_inside_a_draft(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    found, wanted = say(model, monkeypatch, [7, 8, 9, 10] * 100, max_tokens=10_000)
    assert found.finish == wanted.finish == "context"
    assert found.tokens == wanted.tokens
    assert len(found.tokens) + len(found.prompt_tokens) == model.context
    assert found.passes < wanted.passes // 2


@pytest.mark.parametrize("mix", [{}, {"low": 1.0}, {"soft": 1.0}])
def test_a_rejected_draft_leaves_no_trace(model: Model, mix: dict[str, float]) -> None:
    prompt, wrong = [1, 20, 30, 40], [50, 60, 70, 80, 90]
    tried, plain = model.lanes([mix], 40), model.lanes([mix], 40)
    for lanes in (tried, plain):
        lanes.prefill([prompt])
    before = int(tried.lengths[0])
    tried.feed(0, [33, *wrong], keep=0)
    tried.rewind(0, before + 2)  # the first of the draft was right
    plain.feed(0, [33, wrong[0]])
    for token in (21, 22, 23):
        assert np.abs(np.array(tried.step([token])) - np.array(plain.step([token]))).max() < 1e-5
    tried.rewind(0, before)
    assert np.abs(np.array(tried.feed(0, [33])) - np.array(plain.step([33])[0])).max() > 1e-3  # another past
    tried.close()
    plain.close()


def test_sampling_makes_no_drafts(model: Model) -> None:
    found = model.generate(LOOP, adapters={}, raw=True, temperature=0.7, seed=1, max_tokens=20)
    assert found.passes == len(found.tokens) - 1
    assert found.tokens == model.generate(LOOP, adapters={}, raw=True, temperature=0.7, seed=1, max_tokens=20,
                                          lookup=False).tokens


def test_the_longest_match_is_followed() -> None:
    lookup, eager = Lookup([1, 2, 3, 4, 5, 9, 3, 4, 6, 1, 2, 3, 4]), Eager()
    assert eager.draft(lookup, 2) == [5, 9]
    assert eager.draft(lookup, 1) == [5]
    lookup.push(6)
    assert eager.draft(lookup, 16)[:2] == [1, 2]  # 3 4 6, the newest place
    lookup.push(77)
    assert eager.draft(lookup, 16) == []


def test_earlier_answers_are_followed_where_this_one_has_no_match() -> None:
    eager = Eager()
    eager.remember([50, 51, 52, 53, 54], [7, 8, 9, 10, 2])
    assert eager.draft(Lookup([30, 31, 53, 54]), 3) == [7, 8, 9]
    assert eager.draft(Lookup([8, 9, 4, 5, 8, 9]), 3)[:2] == [4, 5]  # its own match comes first
    assert eager.draft(Lookup([30, 31]), 3) == []
    for _ in range(2000):
        eager.remember([1, 2, 3, 4], [5, 6, 7, 8])
    assert len(eager.earlier.tokens) < 2 * REMEMBERED
    assert eager.draft(Lookup([30, 31, 53, 54]), 3) == []  # forgotten


def test_drafts_that_fail_are_given_up_and_tried_again() -> None:
    lookup, drafting = Lookup([1, 2, 3] * 4), Drafting()
    assert drafting.draft(lookup, 16)
    while drafting.draft(lookup, 16):
        drafting.learn(4, 0, 0.0)
    for _ in range(600):
        drafting.draft(lookup, 16)
    assert drafting.draft(lookup, 16)


def test_passes_that_cost_too_much_make_no_drafts() -> None:
    dear = Drafting()
    for _ in range(60):
        dear.costs.learn(1, 1.0)
        dear.costs.learn(5, 9.0)
    assert dear.costs.of(5) == pytest.approx(9.0, rel=0.3)
    assert dear.draft(Lookup([1, 2, 3] * 4), 16) == []


def test_answers_of_one_adapter_are_no_drafts_for_another(model: Model) -> None:
    model.generate(LOOP, adapters={}, raw=True, lookup=True, max_tokens=8)
    assert model.engine.drafting.of([]).earlier.tokens
    assert not model.engine.drafting.of(["low"]).earlier.tokens


def test_drafts_are_made_by_themselves_where_answers_stay_exact(model: Model, int4_bundle: Path) -> None:
    assert model.lookup
    assert not open_model(int4_bundle, {}).lookup  # int8 activations: a pass of several tokens rounds otherwise
    assert open_model(int4_bundle, {}, lookup=True).lookup


def test_what_is_known_of_adapters_is_bounded() -> None:
    """A thousand adapters would else keep a thousand answers' indexes that no budget counts."""
    habits = Habits()
    for index in range(KNOWN + 1):
        habits.of([f"n{index}"]).remember([], [5, 6, 7])
        habits.of(["n0"])
    assert habits.of(["n0"]).earlier.tokens == [5, 6, 7]
    assert habits.of([f"n{KNOWN}"]).earlier.tokens == [5, 6, 7]
    assert not habits.of(["n1"]).earlier.tokens
    assert len(habits._known) == KNOWN
