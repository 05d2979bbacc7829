"""Limits of a request: time, interrupts, numbers that are none; and the runner after all that it refuses."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.contract.bundle import read_bundle
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.tensors import TensorFile, write_tensors
from edgeft.run import Generation, Model
from edgeft.run.engine import whole
from edgeft.run.request import Request
from edgeft.run.sampling import Sampler
from edgeft.run.unsound import layer_names
from tests.conftest import edgeft
from tests.run.conftest import PROMPTS, broken, open_model
from tests.run.test_engine import alone

QUESTION: dict[str, Any] = {"prompt": PROMPTS[0], "adapters": {"low": 1.0}, "raw": True, "temperature": 0,
                            "max_tokens": 9}


@pytest.fixture(scope="module", params=[False, True], ids=["one-graph", "several"])
def model(request: pytest.FixtureRequest, bundle: Path, kinds: dict[str, Path]) -> Model:
    return open_model(bundle, kinds, several=request.param)


def idle(model: Model) -> bool:
    """Whether nothing is left of any request: no row, no user of an adapter, no cache but one row's."""
    lanes = model.engine._lanes
    return not (model.engine.busy or model.engine._tell or any(model.shelf._users.values()) or
                (lanes is not None and (lanes.rows or lanes.most > 1)))


def slow(model: Model, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.02) -> None:
    """Each pass takes at least so long."""
    step = model.engine.step
    monkeypatch.setattr(model.engine, "step", lambda: (time.sleep(seconds), step())[1])


# Time

def test_time_that_is_over_ends_a_request_and_no_other(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = {**QUESTION, "max_tokens": 60}
    requests = [model.requests([ask["prompt"]], [{}], timeout=timeout, **{key: ask[key] for key in ask if key not in (
        "prompt", "adapters")})[0] for timeout in (0.2, None)]
    wanted = alone(model, requests)
    requests[0].deadline = time.perf_counter() + 0.2
    slow(model, monkeypatch)
    told: dict[Any, list[Any]] = {request: [] for request in requests}
    for request, piece in model.engine.run(requests):
        told[request].append(piece)
    short, long = (told[request][-1] for request in requests)
    assert short.finish == "timeout"
    assert 0 < len(short.tokens) < len(wanted[0])
    assert short.tokens == wanted[0][: len(short.tokens)]
    assert "".join(told[requests[0]][:-1]) == short.text
    assert long.tokens == wanted[1]
    assert idle(model)


def test_a_request_that_waits_or_feeds_has_no_more_time_either(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeft.run.lanes.CHUNK", 1)
    monkeypatch.setattr(model.engine, "most_rows", 1)
    slow(model, monkeypatch)
    options = {"raw": True, "temperature": 0, "max_tokens": 20}
    feeding = model.requests(["the red cat runs a tree"], [{}], timeout=0.05, **options)
    waiting = model.requests(["a"], [{"low": 1.0}], timeout=0.05, **options)
    last = model.requests(["the"], [{}], **options)
    (wanted,) = alone(model, last)
    for request in (*feeding, *waiting):
        request.deadline = time.perf_counter() + 0.05
    ended = [piece for _, piece in model.engine.run([*feeding, *waiting, *last]) if isinstance(piece, Generation)]
    assert sorted((answer.finish == "timeout", len(answer.tokens)) for answer in ended) == [
        (False, len(wanted)), (True, 0), (True, 0)]
    assert idle(model)


def test_with_time_enough_the_answer_is_whole(model: Model) -> None:
    assert model.generate(**QUESTION, timeout=60).tokens == model.generate(**QUESTION).tokens
    assert model.generate(**QUESTION, timeout=1e-9).finish == "timeout"


def test_tasks_have_time_limits_too(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(model, monkeypatch)

    async def ask() -> list[Any]:
        return await asyncio.gather(model.agenerate(**{**QUESTION, "max_tokens": 200}, timeout=0.2),
                                    model.agenerate(**QUESTION))

    first, second = asyncio.run(ask())
    assert first.finish == "timeout"
    monkeypatch.undo()
    assert second.tokens == model.generate(**QUESTION).tokens


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "1"])
def test_a_time_that_cannot_be_is_refused(model: Model, timeout: Any) -> None:
    with pytest.raises(UsageError, match="timeout must be"):
        model.generate(**QUESTION, timeout=timeout)


def test_the_command_ends_with_1_when_time_is_over(bundle: Path) -> None:
    done = edgeft("run", bundle, "--prompt", "a", "--timeout", "0.000001", "--json", check=False)
    assert done.returncode == 1
    assert '"finish": "timeout"' in done.stdout
    assert "ended after 1e-06 s (--timeout)" in done.stderr
    assert edgeft("run", bundle, "--prompt", "a", "--timeout", "60").returncode == 0
    assert edgeft("run", bundle, "--prompt", "a", "--timeout", "0", check=False).returncode == 2


# Ctrl-C

@pytest.fixture
def keyboard() -> Iterator[None]:
    """As at a terminal: a shell starts what runs in its background with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("keyboard")
def test_an_interrupt_waits_for_the_pass() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), whole():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        done.append(True)
    assert done == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("keyboard")
def test_ctrl_c_ends_ones_own_request_and_not_the_others(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread's request runs in the batch that the main thread is driving when Ctrl-C comes."""
    ask = {**QUESTION, "max_tokens": 30}
    wanted, found = model.generate(**ask).tokens, list[Any]()
    slow(model, monkeypatch, 0.01)
    thread = threading.Thread(target=lambda: found.append(model.generate(**ask)))
    stream = model.stream("the", adapters={}, raw=True, temperature=0, max_tokens=100)
    next(stream)
    thread.start()
    while len(model.engine._tell) < 2:
        time.sleep(0.001)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    thread.join(60)
    assert found[0].tokens == wanted
    assert idle(model)


# Numbers

@pytest.mark.parametrize(("word", "place"), [
    ("layers.0.self_attn.k_proj", r"the keys of model.layers.0 \(the first ones"),
    ("layers.0.self_attn.v_proj", r"the values of model.layers.0 \(the first ones"),
    ("layers.0.mlp.down_proj", r"keys and values of model.layers.1 \(finite up to those of model.layers.0\)"),
    ("layers.1.self_attn.v_proj", r"the values of model.layers.1 \(finite up to those of model.layers.0\)"),
    ("layers.1.mlp.down_proj", "behind those of the last layer, model.layers.1, or in the head")])
def test_the_layer_where_numbers_end_is_named(model: Model, bundle: Path, tmp_path: Path, word: str,
                                              place: str) -> None:
    wanted = model.generate(**QUESTION).tokens
    if "broken" in model.shelf.names:
        model.unload_adapter("broken")
    model.load_adapter("broken", broken(bundle, tmp_path / "broken.safetensors", word))
    for options in ({}, {"max_tokens": 1}, {"json_schema": {"type": "object"}}):
        with pytest.raises(EdgeftError, match=f"not a number .* with adapter 'broken': .*{place}"):
            model.generate(**{**QUESTION, "adapters": {"broken": 1.0}, **options})
        assert idle(model)
    assert model.generate(**QUESTION).tokens == wanted  # the same row, that held NaN
    assert not any(not np.isfinite(array).all() for kept, _ in model.budget._kept.values() if isinstance(kept, dict)
                   for array in kept.values() if isinstance(array, np.ndarray))  # no prefix of it is kept
    model.unload_adapter("broken")


def test_rows_beside_a_broken_one_are_right_whatever_the_order(model: Model, bundle: Path, tmp_path: Path) -> None:
    if "broken" in model.shelf.names:
        model.unload_adapter("broken")
    model.load_adapter("broken", broken(bundle, tmp_path / "broken.safetensors", "layers.0.mlp.down_proj"))
    for place in range(3):
        mixes = [{"low": 1.0}, {}, {"wide": 1.0}]
        mixes.insert(place, {"broken": 1.0})
        requests = model.requests([PROMPTS[index] for index in range(4)], mixes, raw=True, temperature=0, max_tokens=12)
        good = [request for request in requests if "broken" not in request.adapters]
        wanted = alone(model, good)
        ended = {request: piece for request, piece in model.engine.run(requests) if not isinstance(piece, str)
                 or isinstance(piece, Generation)}
        assert [ended[request].tokens for request in good] == wanted
        assert "model.layers.1" in str(ended[requests[place]])
    model.unload_adapter("broken")


def test_numbers_that_end_in_the_middle_of_an_answer_are_noticed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also among drafted tokens, whose first wrong one is looked for by comparing."""
    from edgeft.run.binding import Binding

    run, passes = Binding.run, []

    def once(binding: Binding, ids: Any, keep: int, vocabulary: int) -> Any:
        logits = run(binding, ids, keep, vocabulary)
        passes.append(ids.shape[1])
        if len(passes) == 4:
            logits[..., 0, 5] = np.inf
        return logits

    monkeypatch.setattr(Binding, "run", once)
    for lookup in (False, True):
        passes.clear()
        with pytest.raises(EdgeftError, match="all keys and values are finite"):
            model.generate("one two three one two three one two three one two", adapters={}, raw=True, temperature=0,
                           max_tokens=30, lookup=lookup)
        assert idle(model)


def test_layers_have_the_bases_names(bundle: Path) -> None:
    assert layer_names(read_bundle(bundle), 2) == ["model.layers.0", "model.layers.1"]
    assert layer_names(read_bundle(bundle), 3)[2] == "layer 2"


# Adapters that are not what they were

def test_a_file_that_is_written_to_reaches_no_request(bundle: Path, kinds: dict[str, Path], tmp_path: Path) -> None:
    """What was checked is no longer what is mapped; what is packed already is still right."""
    model = open_model(bundle, kinds, keep_prompts=0)
    path = Path(shutil.copy(kinds["part"], tmp_path / "mine.safetensors"))
    model.load_adapter("mine", path)
    ask = {**QUESTION, "adapters": {"mine": 1.0}}
    wanted = model.generate(**ask).tokens
    (running,) = model.requests([ask["prompt"]], [ask["adapters"]], raw=True, temperature=0, max_tokens=9)
    events = model.engine.run([running])
    next(events)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)
    assert [piece for _, piece in events][-1].tokens == wanted
    model.generate(**QUESTION)
    model.budget._shrink(0)
    with pytest.raises(EdgeftError, match="was written to while it was in use"):
        model.generate(**ask)
    assert idle(model)
    model.unload_adapter("mine")
    with pytest.raises(EdgeftError, match="claims bytes"):
        model.load_adapter("mine", path)
    shutil.copy(kinds["part"], tmp_path / "new")
    os.replace(tmp_path / "new", path)
    model.load_adapter("mine", path)
    assert model.generate(**ask).tokens == wanted


def test_a_file_that_is_replaced_or_gone_stays_whole(bundle: Path, kinds: dict[str, Path], tmp_path: Path) -> None:
    model = open_model(bundle, kinds, keep_prompts=0)
    path = Path(shutil.copy(kinds["part"], tmp_path / "mine.safetensors"))
    model.load_adapter("mine", path)
    ask = {**QUESTION, "adapters": {"mine": 1.0}}
    wanted = model.generate(**ask).tokens
    for change in (lambda: os.replace(shutil.copy(kinds["low"], tmp_path / "new"), path), path.unlink):
        change()
        model.generate(**QUESTION)
        model.budget._shrink(0)
        assert model.generate(**ask).tokens == wanted


# After each refusal the next one works

def _long(model: Model) -> None:
    model.generate("cat " * 400, adapters={})


def _endless(model: Model) -> None:
    model.generate("x" * 600 * model.context, adapters={})


def _no_memory(model: Model) -> None:
    limit, model.budget.limit = model.budget.limit, model.budget.fixed + 1000
    try:
        model.generate(**{**QUESTION, "adapters": {"wide": 1.0}, "max_tokens": 100})
    finally:
        model.budget.limit = limit


def _file(change: Callable[[dict[str, np.ndarray], dict[str, str]], None]) -> Callable[[Model], None]:
    def ask(model: Model) -> None:
        file = TensorFile(model.shelf._paths["low"])
        tensors, metadata = {name: np.array(file[name]) for name in file}, dict(file.metadata)
        change(tensors, metadata)
        path = model.shelf._paths["low"].with_name("refused.safetensors")
        write_tensors(path, tensors, metadata)
        model.register_adapter("refused", path)
        try:
            model.batch(["a", "the"], adapters=[{"low": 1.0}, {"refused": 1.0}], raw=True, max_tokens=3)
        finally:
            model.unload_adapter("refused")
    return ask


def _cut(model: Model) -> None:
    path = model.shelf._paths["low"].with_name("refused.safetensors")
    path.write_bytes(model.shelf._paths["low"].read_bytes()[:-7])
    model.load_adapter("refused", path)


def _first(tensors: dict[str, np.ndarray], value: float) -> None:
    next(iter(tensors.values()))[0, 0] = value


def _shape(tensors: dict[str, np.ndarray]) -> None:
    name = next(iter(tensors))
    tensors[name] = tensors[name][:-1]


def _zeros(tensors: dict[str, np.ndarray]) -> None:
    for name in tensors:
        tensors[name][...] = 0


REFUSALS: dict[str, tuple[str, Callable[[Model], object]]] = {
    "no prompt": ("is empty", lambda model: model._check_fits(
        Request([], {}, Sampler(), model.tokenizer, model.eos, model.context))),
    "too long": ("no room is left", _long),
    "far too long": ("characters a token", _endless),
    "no token": ("max_tokens", lambda model: model.generate("a", max_tokens=0)),
    "no time": ("timeout must be", lambda model: model.generate("a", timeout=-1)),
    "unknown adapter": ("has no adapter 'nobody'", lambda model: model.generate("a", adapters={"nobody": 1})),
    "scale": ("finite number", lambda model: model.generate("a", adapters={"low": float("inf")})),
    "half a soft prompt": ("soft prompt", lambda model: model.generate("a", adapters={"soft": 0.5})),
    "option": ("no option 'heat'", lambda model: model.generate("a", heat=1)),
    "sampling": ("Out of range", lambda model: model.generate("a", temperature=-1)),
    "task": ("task", lambda model: model.generate("a", adapters={}, task="nobody")),
    "schema": ("json_schema", lambda model: model.generate("a", json_schema={"type": "nothing"})),
    "grammar": ("grammar", lambda model: model.generate("a", grammar="start: nobody")),
    "schema and grammar": ("one of them", lambda model: model.generate("a", json_schema={}, grammar="start: \"a\"")),
    "counts": ("do not match", lambda model: model.batch(["a", "b"], adapters=[{}])),
    "memory": ("--memory", _no_memory),
    "name taken": ("already", lambda model: model.register_adapter("low", model.shelf._paths["wide"])),
    "not loaded": ("No adapter", lambda model: model.unload_adapter("nobody")),
    "no file": ("cannot be read", lambda model: model.load_adapter("refused", "/nowhere/x.safetensors")),
    "cut file": ("claims bytes", _cut),
    "other base": ("base fingerprint", _file(lambda _, metadata: metadata.update(base_fingerprint="0" * 64))),
    "NaN": ("holds NaN", _file(lambda tensors, _: _first(tensors, np.nan))),
    "infinite": ("infinite", _file(lambda tensors, _: _first(tensors, np.inf))),
    "shape": ("declared", _file(lambda tensors, _: _shape(tensors))),
    "half a pair": ("no partner", _file(lambda tensors, _: tensors.pop(next(iter(tensors))) is None)),
    "slot": ("no such slot", _file(lambda tensors, _: tensors.update(there_is_none=np.ones((2, 2), np.float32)))),
    "no effect": ("change nothing", _file(lambda tensors, _: _zeros(tensors))),
    "too large": ("not a number", _file(lambda tensors, _: [array.__imul__(1e36) for array in tensors.values()])),
    "message": ("needs a role", lambda model: model.generate([{"role": "user", "content": 5}], adapters={})),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_the_runner_survives_what_it_refuses(model: Model, name: str) -> None:
    words, ask = REFUSALS[name]
    wanted = model.generate(**QUESTION).tokens
    with pytest.raises(EdgeftError, match=words):
        ask(model)
    assert idle(model)
    assert model.generate(**QUESTION).tokens == wanted
    answers = model.batch(PROMPTS[:2], adapters=[{"low": 1.0}, {"wide": 1.0}], raw=True, temperature=0, max_tokens=9)
    assert answers[0].tokens == wanted
    assert "refused" not in model.shelf.names


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")
def test_a_refused_file_is_closed_at_once(model: Model) -> None:
    """Not when the collector happens to come by."""
    import gc

    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        for name in ("NaN", "no effect", "shape", "other base", "cut file"):
            for _ in range(3):
                with pytest.raises(EdgeftError):
                    REFUSALS[name][1](model)
        assert len(os.listdir("/proc/self/fd")) <= before
    finally:
        gc.enable()
