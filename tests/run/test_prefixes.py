"""Keys and values of earlier prompts are used again where tokens, adapters and scales agree, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeft.run import Model
from edgeft.run.prefixes import LEAST
from tests.run.conftest import MIXES, open_model

SYSTEM = "the red cat runs a tree and the blue house is in the small green tree and one two three four five "


@pytest.fixture
def model(bundle: Path, kinds: dict[str, Path]) -> Model:
    return open_model(bundle, kinds)


@pytest.fixture(scope="module")
def fresh(bundle: Path, kinds: dict[str, Path]) -> Model:
    """Keeps nothing."""
    return open_model(bundle, kinds, keep_prompts=0)


@pytest.mark.parametrize("mix", MIXES)
def test_a_prompt_that_begins_alike_is_not_computed_again(model: Model, fresh: Model, mix: dict[str, float]) -> None:
    first, second = SYSTEM + "a cat", SYSTEM + "the dog"
    model.generate(first, adapters=mix, raw=True, max_tokens=6)
    found = model.generate(second, adapters=mix, raw=True, max_tokens=12)
    assert found.reused_tokens >= LEAST
    assert found.reused_tokens < len(found.prompt_tokens)
    wanted = fresh.generate(second, adapters=mix, raw=True, max_tokens=12)
    assert found.tokens == wanted.tokens
    assert wanted.reused_tokens == 0
    assert model.generate(second, adapters=mix, raw=True, max_tokens=12).tokens == wanted.tokens  # all of it was kept


def test_other_adapters_and_scales_share_nothing(model: Model, fresh: Model) -> None:
    for mix in [*MIXES, {"low": 0.9}, {"soft": 0.0}]:
        found = model.generate(SYSTEM, adapters=mix, raw=True, max_tokens=6)
        assert (found.reused_tokens > 0) == (mix == {"soft": 0.0})  # which is the bare base again
        assert found.tokens == fresh.generate(SYSTEM, adapters=mix, raw=True, max_tokens=6).tokens


def test_a_name_with_another_file_shares_nothing(model: Model, fresh: Model, kinds: dict[str, Path]) -> None:
    model.generate(SYSTEM, adapters={"low": 1.0}, raw=True, max_tokens=6)
    model.unload_adapter("low")
    model.register_adapter("low", kinds["wide"])
    found = model.generate(SYSTEM, adapters={"low": 1.0}, raw=True, max_tokens=6)
    assert found.reused_tokens == 0
    assert found.tokens == fresh.generate(SYSTEM, adapters={"wide": 1.0}, raw=True, max_tokens=6).tokens


def test_a_chats_turns_go_on_from_each_other(model: Model, fresh: Model) -> None:
    messages = [{"role": "user", "content": SYSTEM}]
    for turn in range(3):
        found = model.generate(messages, adapters={"low": 1.0}, max_tokens=10)
        wanted = fresh.generate(messages, adapters={"low": 1.0}, max_tokens=10)
        assert found.tokens == wanted.tokens
        assert (found.reused_tokens > 0) == (turn > 0)
        messages += [{"role": "assistant", "content": found.text}, {"role": "user", "content": "and the dog"}]


def test_the_rows_of_a_batch_use_what_was_kept(model: Model, fresh: Model) -> None:
    model.generate(SYSTEM, adapters={}, raw=True, max_tokens=4)
    prompts = [SYSTEM + word for word in ("cat", "dog", "red", "blue")]
    wanted = [fresh.generate(prompt, adapters={}, raw=True, max_tokens=10).tokens for prompt in prompts]
    found = model.batch(prompts, adapters=[{}] * 4, raw=True, max_tokens=10)
    assert [answer.tokens for answer in found] == wanted
    assert all(answer.reused_tokens >= LEAST for answer in found)


def test_short_prompts_are_not_kept(model: Model) -> None:
    for _ in range(2):
        assert model.generate("the red", adapters={}, raw=True, max_tokens=2).reused_tokens == 0
    assert model.budget.held == 0


def test_the_limit_holds_and_the_least_recently_used_goes(model: Model) -> None:
    prefixes = model.engine.prefixes
    assert prefixes is not None
    words = ("cat", "dog", "bird", "house")
    for word in words:
        model.generate(f"{word} " * 40, adapters={}, raw=True, max_tokens=1)
    whole = model.budget.held
    prefixes.most = whole * 5 // 8  # two of the four
    for word in words:
        model.generate(f"{word} " * 41, adapters={}, raw=True, max_tokens=1)
        assert sum(size for _, size in prefixes._tokens.values()) <= prefixes.most
        assert model.budget.held <= prefixes.most
    assert model.generate("house " * 41, adapters={}, raw=True, max_tokens=1).reused_tokens > 0
    assert model.generate("cat " * 41, adapters={}, raw=True, max_tokens=1).reused_tokens == 0


def test_what_the_budget_threw_away_is_computed_again(model: Model, fresh: Model) -> None:
    model.generate(SYSTEM, adapters={}, raw=True, max_tokens=6)
    model.budget._shrink(0)
    found = model.generate(SYSTEM, adapters={}, raw=True, max_tokens=6)
    assert found.reused_tokens == 0
    assert found.tokens == fresh.generate(SYSTEM, adapters={}, raw=True, max_tokens=6).tokens


def test_nothing_is_kept_where_nothing_may_be(fresh: Model) -> None:
    assert fresh.engine.prefixes is None
    for _ in range(2):
        assert fresh.generate(SYSTEM, adapters={}, raw=True, max_tokens=6).reused_tokens == 0
