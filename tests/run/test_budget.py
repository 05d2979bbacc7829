"""What adapters and running requests take stays within the memory that is allowed, and answers stay right."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.run import Model
from edgeft.run.budget import MIB, Budget
from edgeft.run.engine import Engine
from tests.run.conftest import PROMPTS, open_model, random_lora
from tests.run.test_engine import alone, drive

ONE = 1 << 19  # bytes: more than any one adapter of these tests takes, less than three


@pytest.fixture(scope="module")
def many(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Twelve adapters."""
    folder = tmp_path_factory.mktemp("many")
    return {f"n{seed}": random_lora(bundle, folder / f"n{seed}.safetensors", seed, rank=8) for seed in range(12)}


def small(bundle: Path, many: dict[str, Path], room: int, **options: Any) -> Model:
    """A model with so many bytes for adapters and caches."""
    model = open_model(bundle, many, keep_prompts=0, **options)
    model.budget.limit = model.budget.fixed + room
    return model


def test_the_least_recently_used_goes_first() -> None:
    budget = Budget(100, 40)
    for key in "abc":
        assert budget.make(key, 20, lambda key=key: key.upper(), "it") == key.upper()
    assert budget.get("a") == "A"
    budget.make("d", 20, lambda: "D", "it")
    assert [budget.get(key) for key in "abcd"] == ["A", None, "C", "D"]
    assert budget.held == 60


def test_what_is_pinned_stays_and_what_does_not_fit_is_refused() -> None:
    budget = Budget(100 * MIB, 40 * MIB)
    budget.make("a", 30 * MIB, lambda: "A", "it")
    budget.pin("a")
    budget.pin("a")
    budget.unpin("a")
    with pytest.raises(EdgeftError, match=r"Mine takes 40.0 MiB.*30.0 are left.*--memory 110 or more"):
        budget.make("b", 40 * MIB, lambda: "B", "Mine")
    assert budget.get("a") == "A"
    budget.unpin("a")
    assert budget.make("b", 40 * MIB, lambda: "B", "Mine") == "B"
    assert budget.get("a") is None
    budget.reserve(60 * MIB, "A cache")
    assert budget.held == 0
    with pytest.raises(EdgeftError, match="A cache"):
        budget.reserve(1, "A cache")
    assert budget.reserved == 60 * MIB


def test_what_fails_to_be_made_takes_nothing() -> None:
    budget = Budget(100, 0)
    with pytest.raises(ZeroDivisionError):
        budget.make("a", 50, lambda: 1 // 0, "it")
    assert budget.held == 0
    assert budget.make("a", 100, lambda: 1, "it") == 1


@pytest.mark.parametrize("several", [False, True])
def test_many_adapters_cycle_within_a_small_budget(bundle: Path, many: dict[str, Path], several: bool) -> None:
    model = small(bundle, many, ONE, several=several)
    sets = [{name: 1.0} for name in many] + [{"n0": 0.5, "n1": 0.5}, {}]
    wanted = [open_model(bundle, many, keep_prompts=0).generate("a", adapters=used, raw=True, max_tokens=9).tokens
              for used in sets]
    assert len({tuple(tokens) for tokens in wanted}) > 10
    made: list[Any] = []
    for _ in range(2):
        for used, tokens in zip(sets, wanted, strict=True):
            assert model.generate("a", adapters=used, raw=True, max_tokens=9).tokens == tokens
            assert model.budget.held + model.budget.reserved <= ONE
            made += [key for key in model.budget._kept if key not in made]
    assert len(made) > len(model.budget._kept)  # some were thrown away


@pytest.mark.parametrize("room", [ONE, 3 * ONE])
def test_a_batch_whose_adapters_do_not_all_fit_is_still_right(bundle: Path, many: dict[str, Path], room: int) -> None:
    roomy = small(bundle, many, 1 << 30)
    model = small(bundle, many, room)
    def ask(of: Model) -> list[Any]:
        return of.requests([PROMPTS[index % 6] for index in range(12)], [{name: 1.0} for name in many], raw=True,
                           temperature=0, max_tokens=8)
    wanted = alone(roomy, ask(roomy))
    requests = ask(model)
    highest = 0

    def watch(engine: Engine) -> dict[Any, Any]:
        nonlocal highest
        step = engine.step

        def watched() -> Any:
            nonlocal highest
            events = step()
            highest = max(highest, model.budget.held + model.budget.reserved)
            return events
        engine.step = watched  # type: ignore[method-assign]
        return drive(engine, requests)

    ended = watch(model.engine)
    assert [ended[request].tokens for request in requests] == wanted
    assert 0 < highest <= room


def test_bindings_hold_nothing_that_the_budget_threw_away(bundle: Path, many: dict[str, Path]) -> None:
    model = small(bundle, many, 8 * ONE, several=True)
    names = list(many)[:4]
    lanes = model.lanes([{name: 1.0} for name in names], 20)
    lanes.prefill([[1, 20, 30]] * 4)
    lanes.step([5] * 4)
    lanes.feed(2, [7])
    mine = {id(value) for _, arrays in [model.shelf.matrices({names[2]: 1.0})] for value in arrays.values()}
    own = [binding for binding in lanes._bindings.values()
           if binding.slots not in (None, [()]) and binding.slots[0] is not lanes._matrices]  # type: ignore[index]
    assert {tuple(binding.slots) for binding in own} == {(lanes.key(2),)}  # type: ignore[arg-type]
    assert mine
    kept = list(model.budget._kept)
    model.budget._shrink(0)
    assert [key for key in kept if key in model.budget._kept] == [("rows", lanes.key(2))]
    lanes.close()
    model.budget._shrink(0)
    assert not model.budget._kept


@pytest.mark.parametrize(("room", "who"), [(1000, "A cache for 1 request"), (30_000, "Adapter n3")])
def test_too_little_is_one_message_and_takes_nothing(bundle: Path, many: dict[str, Path], room: int, who: str) -> None:
    model = small(bundle, many, room)
    with pytest.raises(EdgeftError, match=f"(?s){who}.*--memory"):
        model.generate("a", adapters={"n3": 1.0}, raw=True, max_tokens=4)
    assert model.budget.reserved == 0
    assert not model.engine.busy
    assert not any(model.shelf._users.values())
    if room > 1000:
        assert model.generate("a", adapters={}, raw=True, max_tokens=4).tokens


def test_requests_wait_until_there_is_room_for_their_cache(bundle: Path, many: dict[str, Path]) -> None:
    model = small(bundle, many, 1 << 30)
    requests = model.requests(["a", "the", "one", "two", "cat"], [{}] * 5, raw=True, temperature=0, max_tokens=20)
    wanted = alone(model, requests)
    lanes = model._lanes(64, 1)
    model.budget.limit = model.budget.fixed + 3 * lanes.row_bytes(max(request.capacity for request in requests))
    lanes.close()
    rows = []
    step = model.engine.step
    model.engine.step = lambda: (rows.append(len(model.engine.running)), step())[1]  # type: ignore[func-returns-value, method-assign]
    ended = drive(model.engine, requests)
    assert [ended[request].tokens for request in requests] == wanted
    assert max(rows) == 2


def test_a_long_request_does_not_starve_the_next(bundle: Path, many: dict[str, Path]) -> None:
    """The row that stays for the next request makes room for its adapter."""
    model = small(bundle, many, 250_000)
    assert model.generate("a", adapters={}, raw=True, max_tokens=10_000).tokens
    assert model.budget.reserved > 100_000
    assert model.generate("a", adapters={"n3": 1.0}, raw=True, max_tokens=4).tokens


def test_a_task_whose_adapter_has_no_room_fails_alone(bundle: Path, many: dict[str, Path], tmp_path: Path) -> None:
    model = small(bundle, many, 2 * ONE)
    model.register_adapter("wide", random_lora(bundle, tmp_path / "wide.safetensors", 50, rank=200))
    wanted = model.generate("a", adapters={"n1": 1.0}, raw=True, max_tokens=8).tokens

    async def ask() -> list[Any]:
        return await asyncio.gather(*(model.agenerate("a", adapters={name: 1.0}, raw=True, max_tokens=8)
                                      for name in ("n1", "wide", "n1")), return_exceptions=True)

    first, wide, last = asyncio.run(ask())
    assert first.tokens == last.tokens == wanted
    assert isinstance(wide, EdgeftError)
    assert "--memory" in str(wide)


def test_a_name_that_comes_back_with_another_file_is_the_other_adapter(bundle: Path, many: dict[str, Path]) -> None:
    model = small(bundle, many, 1 << 30)
    first = model.generate("a", adapters={"n1": 1.0}, raw=True, max_tokens=9).tokens
    second = model.generate("a", adapters={"n2": 1.0}, raw=True, max_tokens=9).tokens
    assert first != second
    with pytest.raises(UsageError, match="already"):
        model.register_adapter("n1", many["n2"])
    model.unload_adapter("n1")
    model.register_adapter("n1", many["n2"])
    assert model.generate("a", adapters={"n1": 1.0}, raw=True, max_tokens=9).tokens == second
    model.unload_adapter("n2")
    with pytest.raises(UsageError, match="n2"):
        model.generate("a", adapters={"n2": 1.0})


def test_the_shelf_closes_files_that_nobody_uses(bundle: Path, many: dict[str, Path],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeft.run.shelf.OPEN", 3)
    model = small(bundle, many, 1 << 30)
    wanted = {name: model.generate("a", adapters={name: 1.0}, raw=True, max_tokens=5).tokens for name in many}
    assert len(model.shelf.opened) == 3
    assert {name: model.generate("a", adapters={name: 1.0}, raw=True, max_tokens=5).tokens for name in many} == wanted
    answers = model.batch(["a"] * 12, adapters=[{name: 1.0} for name in many], raw=True, max_tokens=5)
    assert [answer.tokens for answer in answers] == list(wanted.values())


def test_a_damaged_adapter_is_refused_by_its_digest(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "copy")
    path = tmp_path / "copy" / "adapters" / "colors.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    model = Model(tmp_path / "copy")
    assert model.generate("a", adapters={}, raw=True, max_tokens=2).tokens
    with pytest.raises(EdgeftError, match="sha256"):
        model.generate("a", adapters={"colors": 1.0})
