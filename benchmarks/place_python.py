"""The runner on this machine's processor: what all other places are compared with (places.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

PROVIDER = "CPUExecutionProvider"  # also for bundles of a device that has another one


def missing() -> str:
    """Nothing ever is."""
    return ""


def answers(bundle: Path, questions: list[dict[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """Greedy answers of at most so many tokens, and the logits behind each prompt."""
    from edgeft.run import load

    model = load(bundle, provider=PROVIDER)
    return [answer(model, question, tokens) for question in questions]


def answer(model: Any, question: dict[str, Any], tokens: int) -> dict[str, Any]:
    """One question to an open model, greedily, through the runner's own lanes."""
    prompt = question["prompt_tokens"]
    lanes = model.lanes([{question["adapter"]: 1.0} if question["adapter"] else {}], model.context)
    logits = np.array(lanes.prefill([prompt])[0])
    found = [int(logits.argmax())]
    while len(found) < tokens and found[-1] not in model.eos:
        found.append(int(lanes.step(found[-1:])[0].argmax()))
    lanes.close()
    return {"tokens": found, "logits": logits.tolist()}
