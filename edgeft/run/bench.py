"""Prefill and decode speed, and peak memory, of a bundle on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeft.contract.errors import UsageError
from edgeft.contract.memory import peak_mib

from .classify import check_generates
from .model import Model


def bench(bundle: Path, adapters: Mapping[str, float] | None, *, prompt_tokens: int = 128, new_tokens: int = 128,
          repeats: int = 3, threads: int | None = None) -> dict[str, Any]:
    """Medians over `repeats` runs after one warm-up; speeds in tokens per second, memory in MiB.

    Tokens are arbitrary and an end-of-sequence token does not stop the run: every run does the same work.
    """
    start = time.perf_counter()
    model = Model(bundle, threads=threads)
    load_seconds = time.perf_counter() - start
    check_generates(model, model.adapters_for(adapters))
    if prompt_tokens + new_tokens > model.context:
        raise UsageError(f"--prompt-tokens {prompt_tokens} and --new-tokens {new_tokens} are more than the bundle's "
                         f"context of {model.context}.")
    used = model.adapters_for(adapters)
    ids = [3 + index % (model.graphs.vocabulary - 3) for index in range(prompt_tokens)]
    runs = [_run(model, ids, new_tokens, used) for _ in range(repeats + 1)][1:]
    prefill, decode = (statistics.median(run[part] for run in runs) for part in (0, 1))
    return {"prefill": round(prompt_tokens / prefill, 2), "decode": round(new_tokens / decode, 2),
            "first_token_ms": round(1000 * prefill, 2), "load_ms": round(1000 * load_seconds, 1),
            "peak_mib": round(peak_mib(), 1), "adapter": "+".join(used) or None, "adapters": used,
            "threads": model.threads, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens,
            "repeats": repeats, "quant": model.bundle.manifest["quant"]["kind"],
            "soft_prompt": _soft_prompt(model, ids, used, repeats)}


def _run(model: Model, ids: list[int], new: int, adapters: Mapping[str, float]) -> tuple[float, float]:
    """Seconds for the prefill and for `new` decode steps."""
    lanes = model.lanes([adapters], len(ids) + new)
    start = time.perf_counter()
    token = int(lanes.prefill([ids])[0].argmax())
    middle = time.perf_counter()
    for _ in range(new):
        token = int(lanes.step([token])[0].argmax())
    end = time.perf_counter()
    lanes.close()
    return middle - start, end - middle


def _soft_prompt(model: Model, ids: list[int], adapters: Mapping[str, float], repeats: int) -> dict[str, Any] | None:
    """What a soft prompt costs before the first token, beside computing as many tokens of text; None without one."""
    lanes = model.lanes([adapters], len(ids) + 1)
    length = int(lanes.lengths[0])
    if not length:
        return None
    lanes.prefill([ids])
    copied = statistics.median(_seconds(model, ids, adapters) for _ in range(repeats))
    without = statistics.median(_seconds(model, ids, {}) for _ in range(repeats))
    computed = statistics.median(_seconds(model, [*ids[:1] * length, *ids], {}) for _ in range(repeats))
    return {"tokens": length, "computed_tokens": int(lanes.lengths[0]) - length,
            "first_token_ms": round(1000 * copied, 2), "first_token_ms_if_computed": round(1000 * computed, 2),
            "first_token_ms_without": round(1000 * without, 2)}


def _seconds(model: Model, ids: list[int], adapters: Mapping[str, float]) -> float:
    """From the request to its first logits, caches and adapters' rows included."""
    start = time.perf_counter()
    model.lanes([adapters], len(ids) + 1).prefill([ids])
    return time.perf_counter() - start


def describe(result: dict[str, Any]) -> str:
    """The result for a person."""
    soft = result["soft_prompt"]
    return "\n".join([
        f"prefill  {result['prefill']:>10,.1f} tokens/s   ({result['prompt_tokens']} tokens)",
        f"decode   {result['decode']:>10,.1f} tokens/s   ({result['new_tokens']} tokens)",
        f"memory   {result['peak_mib']:>10,.1f} MiB at the peak",
        f"load     {result['load_ms']:>10,.1f} ms",
        *([f"soft prompt of {soft['tokens']} tokens, copied: first token after {soft['first_token_ms']} ms, without it "
           f"{soft['first_token_ms_without']} ms, if it were computed {soft['first_token_ms_if_computed']} ms"]
          if soft else []),
        f"adapter {result['adapter'] or 'none'}, {result['threads']} threads, {result['quant']}, median of "
        f"{result['repeats']}"])
