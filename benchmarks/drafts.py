"""Decode with drafts (prompt lookup) against the same without, on one bundle; a piece of runtime.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import follows, read_lines

BEGINNING = 32  # tokens of a story that are its prompt


def compare_drafts(bundle: str, test: str, stories: str, lines: str, threads: str) -> dict[str, Any]:
    """Tokens per second both ways, of answers that copy from their prompt and of stories; answers that differ."""
    from edgeft.run import load

    # a kept prompt's last token goes in alone and int4 rounds it otherwise: that would blur what drafts change
    model, count = load(bundle, threads=int(threads), keep_prompts=0), int(lines)
    requests = [line["prompt"] for line in read_lines(Path(test))[:count]]
    texts = [model.tokenizer.encode(line["text"]).ids[:BEGINNING] for line in read_lines(Path(stories))[:count]]
    beginnings = [model.tokenizer.decode(ids) for ids in texts]
    copying = _both(model, requests, {"adapters": {"snips": 1.0}, "max_tokens": 96})
    telling = _both(model, beginnings, {"adapters": {}, "max_tokens": 96, "raw": True})
    return {"copying_with": copying[0], "copying_without": copying[1], "stories_with": telling[0],
            "stories_without": telling[1], "tokens_per_pass": copying[2], "answers": 2 * count,
            "differ": copying[3] + telling[3], "wrong": copying[4] + telling[4]}


def _both(model: Any, prompts: list[str], options: dict[str, Any]) -> tuple[float, float, float, int, int]:
    """(tokens/s with drafts, without, tokens per pass with drafts, answers that differ, of those not by a near tie).

    Which goes first alternates.
    """
    tokens, seconds, passes, differ, wrong = {True: 0, False: 0}, {True: 0.0, False: 0.0}, 0, 0, 0
    model.generate(prompts[0], temperature=0, **options)
    for place, prompt in enumerate(prompts):
        answers = {}
        for drafts in ((True, False), (False, True))[place % 2]:
            answer = answers[drafts] = model.generate(prompt, temperature=0, lookup=drafts, **options)
            tokens[drafts] += len(answer.tokens) - 1  # the first token comes out of the prefill
            seconds[drafts] += answer.decode_seconds
        passes += answers[True].passes
        if answers[True].tokens != answers[False].tokens:
            differ += 1
            wrong += not follows(model, answers[True].prompt_tokens, options["adapters"], answers[True].tokens)
    return tokens[True] / seconds[True], tokens[False] / seconds[False], tokens[True] / max(1, passes), differ, wrong
