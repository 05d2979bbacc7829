"""Rows over shared buffers: joining, leaving, winding back, and what a traced graph does instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.contract.bundle import PLAIN_GRAPH, PREFILL_GRAPH, SCALED_GRAPH, SlotGroup
from edgeft.contract.errors import EdgeftError
from edgeft.run import Model
from edgeft.run.growing import GrowingLanes
from edgeft.run.packing import RowMatrices
from tests.conftest import export_bundle, train_run
from tests.run.conftest import MIXES, PROMPTS, open_model, random_lora, random_prefix
from tests.run.test_engine import alone, asked, drive

IDS = [1, 20, 30, 40, 50, 60, 70]


@pytest.fixture(scope="module", params=[False, True], ids=["one-graph", "several"])
def model(request: pytest.FixtureRequest, bundle: Path, kinds: dict[str, Path]) -> Model:
    return open_model(bundle, kinds, keep_prompts=0, several=request.param)


def after(model: Model, mix: dict[str, float], ids: list[int]) -> np.ndarray[Any, Any]:
    """Logits behind these tokens, alone."""
    lanes = model.lanes([mix], len(ids))
    found = np.array(lanes.prefill([ids])[0])
    lanes.close()
    return found


def near(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> bool:
    return bool(np.abs(found - wanted).max() < 1e-4)


@pytest.mark.parametrize("mix", MIXES)
def test_the_last_logits_are_the_last_of_all(model: Model, monkeypatch: pytest.MonkeyPatch,
                                             mix: dict[str, float]) -> None:
    lanes = model.lanes([mix], 40)
    length = int(lanes.lengths[0])
    whole = np.array(lanes.feed(0, IDS, keep=0))
    assert whole.shape == (len(IDS), model.graphs.vocabulary)
    for chunk in (256, 5, 3):
        monkeypatch.setattr("edgeft.run.lanes.CHUNK", chunk)
        for keep in (1, 3, 0, len(IDS)):
            lanes.rewind(0, length)
            found = np.array(lanes.feed(0, IDS, keep=keep))
            assert found.shape[0] == (keep or len(IDS))
            assert near(found, whole[-keep:])
    assert near(whole[2], after(model, mix, IDS[:3]))
    assert not near(whole[2], whole[3])
    lanes.close()


def test_rows_leave_from_the_middle_and_others_join(model: Model) -> None:
    mixes = [mix for mix in MIXES if "factors" not in mix]
    lanes = model._lanes(6, 1)
    held: list[tuple[dict[str, float], list[int]]] = []
    draw = np.random.default_rng(0)
    for turn in range(30):
        if len(held) < 2 or (turn % 3 and len(held) < 6):
            mix = mixes[turn % len(mixes)]
            row = lanes.join(mix, 12 + turn)
            prompt = [1, *draw.integers(10, 90, 1 + turn % 5).tolist()]
            lanes.feed(row, prompt)
            held.append((mix, prompt))
        else:
            row = int(draw.integers(len(held)))
            lanes.leave(row)
            held[row] = held[-1]
            held.pop()
        if len(held) > 1 and turn % 4 == 0:
            lanes.swap(0, len(held) - 1)  # type: ignore[union-attr]
            held[0], held[-1] = held[-1], held[0]
        tokens = draw.integers(10, 90, len(held)).tolist()
        found = np.array(lanes.step(tokens))
        for index, (token, (mix, ids)) in enumerate(zip(tokens, held, strict=True)):
            ids.append(token)
            assert near(found[index], after(model, mix, ids))
        if len({tuple(ids) for _, ids in held}) > 1:
            assert not near(found[0], found[1])
    lanes.close()
    assert model.budget.reserved == 0
    assert not model.budget._pins


def test_a_closed_graph_is_not_kept_alive(bundle: Path, kinds: dict[str, Path]) -> None:
    import gc
    import weakref

    model = open_model(bundle, kinds)
    lanes = model._lanes(20, 3)  # no row that joins makes anything anew
    for row, mix in enumerate([{}, {"low": 1.0}, {"factors": 1.0}]):
        lanes.join(mix, 20)
        before = weakref.ref(next(iter(model.graphs._open.values())))
        lanes.feed(row, IDS)
        gc.collect()
        assert (before() is None) == bool(mix)
        assert model.graphs.opened == [[PLAIN_GRAPH], [PREFILL_GRAPH], [SCALED_GRAPH]][row]
    assert near(np.array(lanes.step([5, 5, 5]))[1], after(model, {"low": 1.0}, [*IDS, 5]))


def test_a_full_cache_is_refused_before_anything_changes(model: Model) -> None:
    lanes = model.lanes([{}], len(IDS) + 1)
    lanes.prefill([IDS])
    with pytest.raises(EdgeftError, match="8 tokens, and 9 are wanted"):
        lanes.feed(0, [5, 6])
    assert near(np.array(lanes.step([5])[0]), after(model, {}, [*IDS, 5]))
    lanes.close()
    with pytest.raises(EdgeftError, match="the bundle's context"):
        model._lanes(model.context + 1, 1)


def test_a_soft_prompt_without_room_leaves_nothing_behind(model: Model) -> None:
    before = model.budget.reserved
    lanes = model._lanes(4, 1)
    with pytest.raises(EdgeftError, match="The soft prompt takes 5 tokens, and the cache holds 4"):
        lanes.join({"soft": 1.0})
    assert lanes.rows == 0
    assert not any(model.shelf._users.values())
    lanes.close()
    assert model.budget.reserved == before


def test_rooms_hold_what_was_placed_last() -> None:
    group = SlotGroup("g", ("a", "b"), 3, (4, 4))
    rooms = RowMatrices([group], 2, {"g": 3})
    draw = np.random.default_rng(0)

    def mix(rank: int) -> dict[str, Any]:
        return {"g.A": draw.normal(size=(1, 2, 3, rank)).astype(np.float32),
                "g.B": draw.normal(size=(1, 2, rank, 4)).astype(np.float32)}

    large, less = mix(3), mix(1)
    for key, made in (("large", large), ("less", less), ("large", large), ((), {}), ("less", less)):
        rooms.place(1, key, made)
        product = rooms.arrays["g.A"][1] @ rooms.arrays["g.B"][1]
        wanted = made["g.A"][0] @ made["g.B"][0] if made else np.zeros((2, 3, 4))
        assert np.abs(product - wanted).max() < 1e-6
    assert not rooms.arrays["g.B"][0].any()
    assert rooms.fits(2, {"g": 3})
    assert not rooms.fits(3, {"g": 1})
    assert not rooms.fits(1, {"g": 4})


@pytest.fixture(scope="module")
def traced(make_base: Callable[..., Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A gpt2, whose cache grows."""
    folder = tmp_path_factory.mktemp("traced")
    run = train_run(folder / "run", make_base("gpt2", n_inner=96), data, "--max-steps", 6, "--batch-size", 8,
                    "--lr", 0.05)
    bundle = export_bundle(folder / "bundle", run, "--quant", "fp32")
    assert '"growing"' in (bundle / "bundle.json").read_text()
    return open_model(bundle, {"low": random_lora(bundle, folder / "low.safetensors", 1),
                               "soft": random_prefix(bundle, folder / "soft.safetensors", 2)})


MANY: list[dict[str, float]] = [{"low": 1.0}, {}, {"soft": 1.0}, {"low": 0.5, "soft": 1.0}, {"run": 1.0, "low": 0.3}]


def test_a_traced_graph_runs_any_number_of_requests(traced: Model) -> None:
    requests = asked(traced, 19, MANY)  # more than run at once
    wanted = alone(traced, requests)
    for gap in (0, 3):
        requests = asked(traced, 19, MANY)
        ended = drive(traced.engine, requests, gap)
        assert [ended[request].tokens for request in requests] == wanted
    assert len({tuple(tokens) for tokens in wanted}) > 6


def test_a_traced_graph_streams_and_cancels(traced: Model) -> None:
    wanted = traced.generate(PROMPTS[0], adapters={"soft": 1.0}, raw=True, max_tokens=12).text
    assert "".join(traced.stream(PROMPTS[0], adapters={"soft": 1.0}, raw=True, max_tokens=12)) == wanted
    assert traced.generate(PROMPTS[0], adapters={}, raw=True, max_tokens=12).text != wanted
    requests = asked(traced, 3, MANY)
    told: dict[Any, list[Any]] = {request: [] for request in requests}
    for request in requests:
        traced.engine.submit(request, told[request].append)
    traced.engine.advance()
    requests[1].cancel()
    while traced.engine.busy:
        traced.engine.advance()
    assert told[requests[1]][-1].finish == "cancelled"
    assert [told[request][-1].tokens for request in requests[::2]] == alone(traced, requests[::2])


def test_a_model_that_cannot_pad_takes_lengths_one_after_the_other(traced: Model,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = alone(traced, asked(traced, 9, MANY))
    monkeypatch.setattr(traced.graphs, "padding", "left")
    sizes = []
    prefill = GrowingLanes.prefill

    def watched(self: GrowingLanes, prompts: Any) -> Any:
        sizes.append(len(prompts))
        return prefill(self, prompts)

    monkeypatch.setattr(GrowingLanes, "prefill", watched)
    requests = asked(traced, 9, MANY)
    ended = drive(traced.engine, requests)
    assert [ended[request].tokens for request in requests] == wanted
    assert len(sizes) > 1


def test_a_traced_batch_whose_adapters_do_not_fit_together_runs_in_turn(traced: Model,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = alone(traced, asked(traced, 4, MANY))
    traced.budget._shrink(0)
    sizes = [traced.shelf.load(name).rank for name in ("low", "run")]
    both = sum(4 * len(group.modules) * sum(sizes) * (group.in_features + sum(group.out_features))
               for group in traced.shelf.groups)
    monkeypatch.setattr(traced.budget, "limit", traced.budget.fixed + both - 1)
    requests = asked(traced, 4, MANY)
    ended = drive(traced.engine, requests)
    assert [ended[request].tokens for request in requests] == wanted
    with pytest.raises(EdgeftError, match="--memory"):
        traced.generate("a", adapters={"low": 1.0, "run": 1.0}, raw=True)
