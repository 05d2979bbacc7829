"""Tasks of an event loop share one batch, and each gets its own answer or its own error."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.run import Model
from tests.run.conftest import MIXES, PROMPTS, open_model


@pytest.fixture(scope="module")
def model(bundle: Path, kinds: dict[str, Path]) -> Model:
    return open_model(bundle, kinds)


def question(index: int) -> dict[str, Any]:
    return {"prompt": PROMPTS[index % len(PROMPTS)], "adapters": MIXES[index % len(MIXES)], "raw": True,
            "max_tokens": 3 + index, "temperature": 0}


def alone(bundle: Path, kinds: dict[str, Path], count: int) -> list[Any]:
    other = open_model(bundle, kinds, keep_prompts=0, lookup=False)
    return [other.generate(**question(index)) for index in range(count)]


async def idle(model: Model) -> None:
    """Wait until the engine has nothing left to do."""
    async with asyncio.timeout(30):
        while model.engine.busy:
            await asyncio.sleep(0.01)


def test_twenty_tasks_get_what_each_gets_alone(model: Model, bundle: Path, kinds: dict[str, Path]) -> None:
    wanted = alone(bundle, kinds, 20)

    async def streamed(index: int) -> str:
        return "".join([piece async for piece in model.astream(**question(index))])

    async def whole(index: int) -> str:
        return (await model.agenerate(**question(index))).text

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*((streamed if index % 2 else whole)(index) for index in range(20)))

    for _ in range(2):  # one event loop after the other
        assert asyncio.run(all_of_them()) == [answer.text for answer in wanted]
    assert len({answer.text for answer in wanted}) > 15
    assert [model.generate(**question(index)).tokens for index in range(4)] == [
        answer.tokens for answer in wanted[:4]]


def test_a_consumer_that_breaks_off_frees_its_row(model: Model) -> None:
    async def leave() -> str:
        async for piece in model.astream("the", adapters={"low": 1.0}, raw=True, max_tokens=200, temperature=0):
            assert piece
            break
        answer = await model.agenerate(**question(2))
        await idle(model)
        return answer.text

    assert asyncio.run(leave()) == model.generate(**question(2)).text
    assert not any(model.shelf._users.values())


def test_a_task_that_is_cancelled_frees_its_row(model: Model) -> None:
    async def leave() -> None:
        task = asyncio.create_task(model.agenerate("the", adapters={"low": 1.0}, raw=True, max_tokens=200))
        while not model.engine.busy:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle(model)

    asyncio.run(leave())
    assert not any(model.shelf._users.values())


def test_an_event_loop_that_ends_in_the_middle_leaves_the_engine_well(model: Model) -> None:
    async def start() -> None:
        asyncio.create_task(model.agenerate("the", adapters={}, raw=True, max_tokens=200))  # noqa: RUF006
        while not model.engine.busy:
            await asyncio.sleep(0)

    wanted = model.generate(**question(4)).tokens
    asyncio.run(start())
    assert model.generate(**question(4)).tokens == wanted

    async def again() -> Any:
        answer = await model.agenerate(**question(4))
        await idle(model)
        return answer

    assert asyncio.run(again()).tokens == wanted


def test_errors_reach_their_own_task(model: Model, bundle: Path, kinds: dict[str, Path]) -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(
            model.agenerate(**question(0)), model.agenerate("a", adapters={"nobody": 1.0}),
            model.agenerate(**question(1)), model.agenerate("cat " * 400, adapters={}),
            model.agenerate("a", adapters={}, max_tokens=5, json_schema={"type": "nothing"}),
            model.agenerate(**question(2)), return_exceptions=True)

    found = asyncio.run(ask())
    wanted = alone(bundle, kinds, 3)
    assert [found[index].tokens for index in (0, 2, 5)] == [answer.tokens for answer in wanted]
    assert isinstance(found[1], UsageError)
    assert "no adapter 'nobody'" in str(found[1])
    assert "no room is left" in str(found[3])
    assert isinstance(found[4], EdgeftError)


def test_a_pass_that_fails_is_told_to_everyone_and_the_engine_goes_on(model: Model,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(*(model.agenerate(**question(index)) for index in range(5)),
                                    return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr("edgeft.run.binding.Binding.run", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
        assert {type(error) for error in asyncio.run(ask())} == {RuntimeError}
    assert [answer.tokens for answer in asyncio.run(ask())] == [
        model.generate(**question(index)).tokens for index in range(5)]


def test_a_stream_held_open_does_not_hold_up_the_tasks(model: Model) -> None:
    wanted = model.generate(**question(3)), model.generate(**question(5))
    stream = model.stream(**question(5))
    pieces = [next(stream)]

    async def ask() -> Any:
        async with asyncio.timeout(60):
            return await model.agenerate(**question(3))

    assert asyncio.run(ask()).tokens == wanted[0].tokens
    assert "".join([*pieces, *stream]) == wanted[1].text


def test_threads_share_the_batch_too(model: Model, bundle: Path, kinds: dict[str, Path]) -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(model.generate, **question(index)) for index in range(8)),
                                    *(model.agenerate(**question(index)) for index in range(8)))

    wanted = [answer.tokens for answer in alone(bundle, kinds, 8)]
    assert [answer.tokens for answer in asyncio.run(ask())] == wanted * 2
