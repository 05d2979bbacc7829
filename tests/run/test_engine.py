"""Requests that join and leave one batch answer as they do alone, whatever runs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.run import Generation, Model
from edgeft.run.batch import Event
from edgeft.run.engine import Engine
from edgeft.run.request import Request
from tests.run.conftest import MIXES, PROMPTS, open_model

LOW = [mix for mix in MIXES if "factors" not in mix]
LENGTHS = (3, 17, 9, 30, 1, 24)


@pytest.fixture(scope="module", params=[False, True], ids=["one-graph", "several"])
def model(request: pytest.FixtureRequest, bundle: Path, kinds: dict[str, Path]) -> Model:
    return open_model(bundle, kinds, keep_prompts=0, several=request.param)


def asked(model: Model, count: int, mixes: Sequence[dict[str, float]] = LOW) -> list[Request]:
    """Requests of different prompts, adapters and lengths."""
    made = []
    for index in range(count):
        made += model.requests([PROMPTS[index % len(PROMPTS)]], [mixes[index % len(mixes)]], raw=True, temperature=0,
                               max_tokens=LENGTHS[index % len(LENGTHS)])
    return made


def alone(model: Model, requests: Sequence[Request]) -> list[list[int]]:
    """Each one's tokens with nothing beside it and no drafts."""
    found = []
    for request in requests:
        lanes = model.lanes([request.adapters], len(request.prompt) + request.max_tokens)
        tokens = [int(lanes.prefill([request.prompt])[0].argmax())]
        while len(tokens) < request.max_tokens and tokens[-1] not in model.eos:
            tokens.append(int(lanes.step([tokens[-1]])[0].argmax()))
        lanes.close()
        found.append(tokens)
    return found


def drive(engine: Engine, requests: Sequence[Request], gap: int = 0) -> dict[Request, Any]:
    """Submit one every `gap` steps, and run to the end; what each was told at last."""
    ended: dict[Request, Any] = {}
    waiting, told = list(requests), dict[Request, list[str]]({request: [] for request in requests})
    steps = 0
    while waiting or engine.busy:
        while waiting and (not gap or steps >= gap * (len(requests) - len(waiting))):
            request = waiting.pop(0)
            engine.submit(request, told[request].append)  # type: ignore[arg-type]
        engine.advance()
        steps += 1
    for request, pieces in told.items():
        assert sum(isinstance(piece, (Generation, Exception)) for piece in pieces) == 1
        ended[request] = pieces[-1]
        if isinstance(pieces[-1], Generation):
            assert "".join(pieces[:-1]) == pieces[-1].text
    return ended


@pytest.mark.parametrize(("rows", "gap"), [(2, 0), (3, 2), (16, 0), (16, 1), (5, 7)])
def test_requests_that_come_and_go_equal_each_alone(model: Model, monkeypatch: pytest.MonkeyPatch, rows: int,
                                                    gap: int) -> None:
    monkeypatch.setattr("edgeft.run.lanes.CHUNK", 4)  # prompts go in while others decode
    requests, before = asked(model, 19), model.budget.reserved
    wanted = alone(model, requests)
    engine = Engine(model._lanes, most_rows=rows, shelf=model.shelf)
    ended = drive(engine, requests, gap)
    assert [ended[request].tokens for request in requests] == wanted
    assert len({tuple(tokens) for tokens in wanted}) > 8
    assert model.budget.reserved == before
    assert not any(model.shelf._users.values())


def test_factors_join_the_others(bundle: Path, kinds: dict[str, Path]) -> None:
    model = open_model(bundle, kinds, keep_prompts=0)
    requests = asked(model, 13, MIXES)
    wanted = alone(model, requests)
    ended = drive(model.engine, requests, 2)
    assert [ended[request].tokens for request in requests] == wanted


def test_a_row_that_ends_while_a_prompt_goes_in_takes_no_other_with_it(model: Model,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeft.run.lanes.CHUNK", 2)
    requests = model.requests(["a", "the", "one", PROMPTS[4]], LOW[:4], raw=True, temperature=0, max_tokens=12)
    requests[1].max_tokens = 4  # the middle one of those that run ends while the last one's prompt goes in
    wanted = alone(model, requests)
    engine = Engine(model._lanes, shelf=model.shelf)
    told: list[Event] = []
    for request in requests:
        engine.submit(request, lambda piece, request=request: told.append((request, piece)))  # type: ignore[misc]
    seen = False
    while engine.busy:
        before = len(engine.running)
        engine.advance()
        seen |= engine.feeding is not None and before == 3 and len(engine.running) == 2
    assert seen
    ended = {request: piece for request, piece in told if isinstance(piece, Generation)}
    assert [ended[request].tokens for request in requests] == wanted


@pytest.mark.parametrize("victim", range(4))
def test_a_cancelled_request_leaves_the_others_alone(model: Model, monkeypatch: pytest.MonkeyPatch,
                                                     victim: int) -> None:
    """Two run, one's prompt goes in, one waits: each of them in turn is cancelled."""
    monkeypatch.setattr("edgeft.run.lanes.CHUNK", 2)
    requests = model.requests(["a", "the", PROMPTS[2], PROMPTS[0]], LOW[:4], raw=True, temperature=0, max_tokens=20)
    wanted, before = alone(model, requests), model.budget.reserved
    engine = Engine(model._lanes, shelf=model.shelf)
    told: dict[Request, list[Any]] = {request: [] for request in requests}
    for request in requests:
        engine.submit(request, told[request].append)
    while engine.feeding is not requests[2]:
        engine.advance()
    assert engine.running == requests[:2]
    assert list(engine.waiting) == requests[3:]
    requests[victim].cancel()
    while engine.busy:
        engine.advance()
    assert told[requests[victim]][-1].finish == "cancelled"
    for index, request in enumerate(requests):
        assert (told[request][-1].tokens == wanted[index]) == (index != victim)
    assert model.budget.reserved == before


def test_streams_may_be_open_side_by_side(model: Model) -> None:
    wanted = [model.generate(PROMPTS[0], adapters=mix, raw=True, max_tokens=15).text for mix in LOW[:2]]
    first, second = (model.stream(PROMPTS[0], adapters=mix, raw=True, max_tokens=15) for mix in LOW[:2])
    pieces = [next(first)]
    assert model.generate(PROMPTS[0], adapters=LOW[1], raw=True, max_tokens=15).text == wanted[1]
    pieces.append(next(first))
    assert "".join(second) == wanted[1]
    assert "".join([*pieces, *first]) == wanted[0]
    assert wanted[0] != wanted[1]


def test_a_stream_that_is_left_frees_its_row(model: Model) -> None:
    stream = model.stream(PROMPTS[0], adapters={"low": 1.0}, raw=True, max_tokens=40)
    next(stream)
    with pytest.raises(UsageError, match="in use by 1"):
        model.unload_adapter("low")
    del stream
    assert not model.engine.busy
    path = model.shelf._paths["low"]
    model.unload_adapter("low")
    model.register_adapter("low", path)


def test_a_request_that_waits_holds_its_adapter(model: Model) -> None:
    engine = Engine(model._lanes, most_rows=1, shelf=model.shelf)
    requests = model.requests(["a", "the"], [{}, {"part": 1.0}], raw=True, temperature=0, max_tokens=8)
    wanted, ended = alone(model, requests), []
    for request in requests:
        engine.submit(request, ended.append)
    engine.advance()
    with pytest.raises(UsageError, match="in use"):
        model.unload_adapter("part")
    while engine.busy:
        engine.advance()
    assert [piece.tokens for piece in ended if isinstance(piece, Generation)] == wanted


def test_an_adapter_whose_answer_is_no_number_ends_its_own_request(model: Model, bundle: Path, tmp_path: Path) -> None:
    from tests.run.conftest import random_lora

    model.load_adapter("huge", random_lora(bundle, tmp_path / "huge.safetensors", 7, size=1e30))
    requests = model.requests([PROMPTS[0]] * 3, [{"low": 1.0}, {"huge": 1.0}, {}], raw=True, temperature=0,
                              max_tokens=9)
    wanted = alone(model, [requests[0], requests[2]])
    ended = drive(model.engine, requests)
    assert "not a number" in str(ended[requests[1]])
    assert [ended[requests[0]].tokens, ended[requests[2]].tokens] == wanted
    with pytest.raises(EdgeftError, match="not a number"):
        model.generate(PROMPTS[0], adapters={"huge": 1.0})
    model.unload_adapter("huge")


def test_a_pass_that_fails_ends_all_and_leaves_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    requests, before = asked(model, 4), model.budget.reserved
    engine = Engine(model._lanes, shelf=model.shelf)
    with monkeypatch.context() as patch:
        patch.setattr("edgeft.run.binding.Binding.run", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
        ended = drive(engine, requests)
    assert {type(error) for error in ended.values()} == {RuntimeError}
    assert model.budget.reserved == before
    assert not any(model.shelf._users.values())
    assert model.generate("a", adapters={}, raw=True, max_tokens=3).tokens


def test_no_answer_without_a_token(model: Model) -> None:
    with pytest.raises(UsageError, match="max_tokens"):
        model.generate("a", max_tokens=0)
    assert len(model.generate("a", adapters={}, raw=True, max_tokens=1).tokens) == 1


def test_every_row_of_a_batch_may_fill_the_context(model: Model) -> None:
    answers = model.batch(["cat " * 60, "a"], adapters=[{}, {"low": 1.0}], raw=True, max_tokens=10_000, temperature=0)
    for answer in answers:
        assert len(answer.prompt_tokens) + len(answer.tokens) <= model.context
        assert answer.finish in ("eos", "context")
    assert np.isin([answer.finish for answer in answers], ["context"]).any()
