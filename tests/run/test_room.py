"""A budget that holds one request but not two: the second waits, and nobody's answer suffers."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeft.contract.errors import EdgeftError
from edgeft.run import Generation, Model, load

PROMPTS = ["the red cat runs a tree", "the blue house", "one two three four five"]
ADAPTERS = [{"colors": 1.0}, {"colors": 0.5}, {"colors": 0.25}]


def asked_at_once(model: Model) -> list[list[int] | str]:
    """Tokens of each answer, or the error that came instead."""
    requests = model.requests(PROMPTS, ADAPTERS, max_tokens=12, temperature=0)
    found: dict[int, list[int] | str] = {}
    for request, piece in model.engine.run(requests):
        if isinstance(piece, Generation):
            found[id(request)] = piece.tokens
        elif isinstance(piece, EdgeftError):
            found[id(request)] = str(piece)
    return [found[id(request)] for request in requests]


def test_whoever_fits_alone_is_answered(bundle: Path) -> None:
    model = load(bundle, keep_prompts=0)
    wanted = [model.generate(prompt, adapters=used, max_tokens=12, temperature=0).tokens
              for prompt, used in zip(PROMPTS, ADAPTERS, strict=True)]
    model.engine.clear()
    refused = answered = 0
    for kib in range(0, 400, 10):
        model.budget.limit = model.budget.fixed + model.budget.reserved + kib * 1024
        model.budget.drop(lambda _: True)
        found = asked_at_once(model)
        if found == wanted:
            answered += 1
        else:
            refused += 1
            assert answered == 0, "more room, and fewer answers"
            assert all(one == right or "--memory" in one for one, right in zip(found, wanted, strict=True))
            for one, prompt, used in zip(found, PROMPTS, ADAPTERS, strict=True):
                if isinstance(one, str):
                    with pytest.raises(EdgeftError, match="--memory"):
                        model.generate(prompt, adapters=used, max_tokens=12, temperature=0)
    assert refused
    assert answered
