"""`python -m edgeft.run.scale JOB.json OUT.json`: the largest scale of an adapter that forgets no more than a budget.

The exporter starts this as a process of its own: the scale is fitted on the very runner that ships, with no torch near.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeft.contract.bundle import read_bundle
from edgeft.contract.data import Example, kind_of, read_records
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.files import sha256

from .classify import check_generates
from .evaluate import mean_loss, tokenize
from .model import Model
from .provider import here

PROBE_TOKENS, TASK_TOKENS = 65_536, 8_192  # at most so many are measured, from lines that are evenly far apart
SMALLEST = 0.05  # below it an adapter is as good as switched off
NEAR = (0.98, 0.999)  # a scale that uses this share of the budget is near enough; the rest is for rounding
TRIES = 16
GROWTH = 1.5  # forgetting grows with the square of a small scale, and straight with a large one
STEP = 1e-4  # scales are told to four places


def largest_scale(forgetting: Callable[[float], float], budget: float) -> tuple[float | None, dict[float, float]]:
    """(the largest scale in (0, 1] that stays within the budget or None, what was measured: scale -> forgetting).

    Between a scale that stays within and one that does not, the next is where a power of it would meet the budget.
    """
    known = {1.0: forgetting(1.0)}
    if known[1.0] <= budget:
        return 1.0, known
    low, high = 0.0, 1.0  # at scale 0 it is the base, which has forgotten nothing
    while len(known) < TRIES and high - low > 2 * STEP and high > SMALLEST:
        scale = max(_next(low, high, known, budget), SMALLEST)
        known[scale] = forgetting(scale)
        if known[scale] > budget * NEAR[1]:
            high = scale
        else:
            low = scale
            if known[scale] >= budget * NEAR[0]:
                break
    for scale in () if low else (0.5, SMALLEST):  # what is said when there is none
        if scale not in known:
            known[scale] = forgetting(scale)
    within = [scale for scale, forgotten in known.items() if forgotten <= budget * NEAR[1]]
    return max(within, default=None), known


def _next(low: float, high: float, known: dict[float, float], budget: float) -> float:
    """Where to look between two scales, as a power joins them; as a line does nearby, or from one that forgets nothing.

    Where that has not met the budget soon, every other look is at the middle: a bent curve would be crept along.
    """
    target = budget * (NEAR[0] + NEAR[1]) / 2
    if len(known) >= 6 and len(known) % 2 == 0:
        guess = (low + high) / 2
    elif not low:
        guess = high * (target / known[high]) ** (1 / GROWTH) if target else high / 2
    elif target and high > 1.5 * low and 0 < known[low] < known[high]:
        power = math.log(known[high] / known[low]) / math.log(high / low)
        guess = high * (target / known[high]) ** (1 / power)
    else:
        guess = low + (high - low) * (target - known[low]) / (known[high] - known[low])
    margin = max(STEP, 0.02 * (high - low))
    return round(min(max(guess, low + margin), high - margin), 4)


def fit(job: dict[str, Any]) -> dict[str, Any]:
    """Fit a bundle's adapter to a budget: scale, forgetting, and the loss on the task's own data."""
    probe = _probe(Path(job["probe"]))
    model = Model(job["bundle"], keep_prompts=0, provider=here(read_bundle(Path(job["bundle"]))))
    name, budget = str(job["adapter"]), float(job["budget"])
    check_generates(model, {name: 1.0})
    examples = bounded(tokenize(model, probe, {}), PROBE_TOKENS)
    base, tokens = mean_loss(model, examples, {})
    soft = bool(model.load_adapter(name).prefix)

    def forgetting(scale: float) -> float:
        found = mean_loss(model, examples, {name: scale})[0] - base
        print(f"scale {scale:.4f}: forgets {found:+.4f} nats per token", file=sys.stderr, flush=True)
        return found

    scale, known = _soft(forgetting, budget) if soft else largest_scale(forgetting, budget)
    return {"scale": scale, "known": sorted(known.items()), "soft": soft, "base_loss": base, "tokens": tokens,
            "probe_sha256": sha256(Path(job["probe"])),
            "task": _task(model, job, [{name: scale}, {name: 1.0}]) if scale and job["data"] else None}


def _soft(forgetting: Callable[[float], float], budget: float) -> tuple[float | None, dict[float, float]]:
    """A soft prompt is there or it is not."""
    known = {1.0: forgetting(1.0)}
    return (1.0 if known[1.0] <= budget else None), known


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Forgetting and task loss of a bundle as it stands; `base_loss` is what the probe cost its base.

    The adapter's name is empty where what was learned is merged.
    """
    model = Model(job["bundle"], keep_prompts=0, provider=here(read_bundle(Path(job["bundle"]))))
    used = {str(job["adapter"]): 1.0} if job["adapter"] else {}
    examples = bounded(tokenize(model, _probe(Path(job["probe"])), {}), PROBE_TOKENS)
    return {"forgetting": mean_loss(model, examples, used)[0] - job["base_loss"],
            "task": _task(model, job, [used]) if job["data"] else None}


def _task(model: Model, job: dict[str, Any], uses: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Loss on the task's own data, and beside it with the adapter as trained."""
    lines = bounded(tokenize(model, read_records(Path(job["data"])), uses[0], job["task"]), TASK_TOKENS)
    loss, tokens = mean_loss(model, lines, uses[0])
    full = {"loss_at_scale_1": mean_loss(model, lines, uses[1])[0]} if len(uses) > 1 else {}
    return {"path": job["data"], "loss": loss, "tokens": tokens, **full}


def _probe(path: Path) -> list[dict[str, Any]]:
    records = read_records(path)
    if kind_of(records[0]) != "text":
        raise UsageError(f"{path}: a probe for forgetting holds lines of {{\"text\": ...}}.")
    return records


def bounded(examples: Sequence[Example], limit: int) -> list[Example]:
    """Lines that are evenly far apart, with about so many tokens in all; every line where they have fewer."""
    total = sum(len(example.ids) for example in examples)
    count = max(1, min(len(examples), int(len(examples) * limit / max(total, 1))))
    return [examples[index * len(examples) // count] for index in range(count)]


def main() -> None:
    """Answer the job: what was found, or the error that its user shall see."""
    job = json.loads(Path(sys.argv[1]).read_text())
    found: dict[str, Any]
    try:
        found = {"found": (fit if job["fit"] else measure)(job)}
    except EdgeftError as error:
        found = {"error": str(error), "usage": isinstance(error, UsageError)}
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
