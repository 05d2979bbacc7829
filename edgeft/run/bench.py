"""What a bundle does on this machine: speed, memory, the price of an adapter, switching, a mixed batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.memory import peak_mib

from . import load
from .adapters import length_of
from .chart import write_chart
from .classify import check_generates
from .lanes import Lanes
from .model import Model
from .peers import charted
from .provider import Wanted
from .request import Generation, Request
from .sampling import Sampler

Used = Mapping[str, float]  # adapter name -> scale
WARM = 8  # tokens of a warm-up


def bench(bundle: Path, adapters: Used | None, *, threads: int | None = None, provider: Wanted = None,
          **settings: int) -> dict[str, Any]:
    """Load a bundle and measure it; settings as in `measure`."""
    start = time.perf_counter()
    model = load(bundle, threads=threads, provider=provider)
    seconds = time.perf_counter() - start
    return {**measure(model, model.adapters_for(adapters), **settings), "load_ms": round(1000 * seconds, 1)}


def measure(model: Model, used: Used, *, prompt_tokens: int = 128, new_tokens: int = 128, repeats: int = 3,
            batch: int = 8) -> dict[str, Any]:
    """Medians over `repeats` runs after a warm-up; speeds in tokens per second, memory in MiB, times in ms.

    Tokens are arbitrary and an end-of-sequence token does not stop the run: every run does the same work. The batch
    has half as many new tokens, and each of its `batch` rows an adapter of its own.
    """
    check_generates(model, used)
    if prompt_tokens + new_tokens > model.context:
        raise UsageError(f"--prompt-tokens {prompt_tokens} and --new-tokens {new_tokens} are more than the bundle's "
                         f"context of {model.context}.")
    ids = tokens(model, prompt_tokens)
    bare = _speeds(model, ids, new_tokens, {}, repeats)  # first: without prepared weights the plain graph goes away
    bare_peak = peak_mib()
    own = _speeds(model, ids, new_tokens, used, repeats) if used else bare
    peak = peak_mib()
    return {**own, "peak_mib": round(peak, 1), "adapter": "+".join(used) or None, "adapters": dict(used),
            "threads": model.threads, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "repeats": repeats,
            "quant": model.bundle.manifest["quant"]["kind"], "base": {**bare, "peak_mib": round(bare_peak, 1)},
            "adapter_price": round(1 - own["decode"] / bare["decode"], 4) if used else None,
            "first_load_ms": first_load(model, used, repeats), "swap_ms": swap(model, used),
            "soft_prompt": _soft_prompt(model, ids, used, repeats),
            "batch": _batch(model, used, batch, prompt_tokens, max(2, new_tokens // 2), repeats) if batch else None}


def tokens(model: Model, count: int, first: int = 0) -> list[int]:
    """Arbitrary token ids, another beginning for another `first`."""
    return [3 + (first + index) % (model.graphs.vocabulary - 3) for index in range(count)]


def _speeds(model: Model, ids: list[int], new: int, used: Used, repeats: int) -> dict[str, float]:
    """Prefill and decode, and the time from a request to its first logits."""
    _run(model, ids, min(new, WARM), used)
    runs = [_run(model, ids, new, used) for _ in range(repeats)]
    prefill, decode, first = (statistics.median(run[part] for run in runs) for part in range(3))
    return {"prefill": round(len(ids) / prefill, 2), "decode": round(new / decode, 2),
            "first_token_ms": round(1000 * first, 2)}


def _run(model: Model, ids: list[int], new: int, used: Used) -> tuple[float, float, float]:
    """Seconds for the prefill, for `new` decode steps, and from the request to its first token."""
    asked = time.perf_counter()
    lanes = model.lanes([used], len(ids) + new)
    start = time.perf_counter()
    token = int(lanes.prefill([ids])[0].argmax())
    middle = time.perf_counter()
    for _ in range(new):
        token = int(lanes.step([token])[0].argmax())
    end = time.perf_counter()
    lanes.close()
    return middle - start, end - middle, middle - asked


def variants(model: Model, used: Used, count: int) -> list[dict[str, float]]:
    """So many different sets of adapters: what is used, the bundle's other ones, then scales of what is used."""
    found = [dict(used)]
    if not used or any(model.shelf.load(name).prefix for name in used):
        return found  # a soft prompt has no scale, and where no adapter is wanted there is none to vary
    for name in model.shelf.names:
        if len(found) < count and {name: 1.0} not in found and model.shelf.kind({name: 1.0}) == "lowrank":
            found.append({name: 1.0})
    step = min(0.1, 0.9 / count)
    scales = (1 - place * step for place in range(1, count))
    while len(found) < count:
        scale = next(scales)
        found.append({name: value * scale for name, value in used.items()})
    return found


def first_load(model: Model, used: Used, repeats: int) -> float | None:
    """Median ms of opening, checking and packing adapters whose file is not open; None without a shared cache."""
    lanes = _one_row(model, used)
    if lanes is None:
        return None
    times = []
    for _ in range(repeats):
        for name in used:
            model.unload_adapter(name)
        times.append(_ready_ms(model, lanes, used))
    lanes.close()
    return round(statistics.median(times), 2)


def swap(model: Model, used: Used, times: int = 50) -> float | None:
    """Median ms from asking for the other of two resident adapters until its first pass could start."""
    both = variants(model, used, 2)
    lanes = _one_row(model, used) if len(both) == 2 else None
    if lanes is None:
        return None
    found = [_ready_ms(model, lanes, both[turn % 2]) for turn in range(times + 4)]
    lanes.close()
    return round(statistics.median(found[4:]), 3)  # the first ones make them resident


def _one_row(model: Model, used: Used) -> Lanes | None:
    """A cache for one request without one in it, as a server keeps it; None where there is nothing to switch."""
    lanes = model.lanes([{}], 64 + length_of(model.shelf.prefix(used))) if used else None
    if not isinstance(lanes, Lanes):
        return None
    lanes.leave(0)
    return lanes


def _ready_ms(model: Model, lanes: Lanes, used: Used) -> float:
    """From a request to where its first pass could start."""
    start = time.perf_counter()
    model.shelf.check([used])
    row = lanes.join(used)
    lanes.bind(row)
    seconds = time.perf_counter() - start
    lanes.leave(row)
    return 1000 * seconds


def _batch(model: Model, used: Used, rows: int, prompt: int, new: int, repeats: int) -> dict[str, Any]:
    """Requests with an adapter each, all together: new tokens per second until all are done, and of decoding alone."""
    sets = variants(model, used, rows)
    sets = [sets[row % len(sets)] for row in range(rows)]
    try:
        mixed(model, sets, prompt, 2, 0)
        total = statistics.median(mixed(model, sets, prompt, new, turn + 1) for turn in range(repeats))
        decode = statistics.median(_decode_alone(model, sets, prompt, new) for _ in range(repeats))
    except EdgeftError as error:  # the budget may not hold that many
        return {"rows": rows, "refused": str(error)}
    return {"rows": rows, "adapters": len({tuple(row.items()) for row in sets if row}), "prompt_tokens": prompt,
            "new_tokens": new, "tokens_per_s": round(total, 2), "decode": round(decode, 2),
            "peak_mib": round(peak_mib(), 1)}


def mixed(model: Model, sets: Sequence[Used], prompt: int, new: int, turn: int) -> float:
    """New tokens per second of requests that arrive at once, prompts included; each `turn` has prompts of its own."""
    requests = [Request(tokens(model, prompt, turn * len(sets) + row), dict(used), Sampler(temperature=0),
                        model.tokenizer, frozenset(), model.context, max_tokens=new, lookup=False)
                for row, used in enumerate(sets)]
    start, made = time.perf_counter(), 0
    for _, piece in model.engine.run(requests):
        if isinstance(piece, EdgeftError):
            raise piece
        made += len(piece.tokens) if isinstance(piece, Generation) else 0
    return made / (time.perf_counter() - start)


def _decode_alone(model: Model, sets: Sequence[Used], prompt: int, new: int) -> float:
    """Tokens per second of all rows together, after their prompts."""
    lanes = model.lanes(sets, prompt + new)
    chosen = lanes.prefill([tokens(model, prompt)] * len(sets)).argmax(-1)
    chosen = lanes.step(chosen.tolist()).argmax(-1)  # matrices are put in place by the first step
    start = time.perf_counter()
    for _ in range(new - 1):
        chosen = lanes.step(chosen.tolist()).argmax(-1)
    seconds = time.perf_counter() - start
    lanes.close()
    return len(sets) * (new - 1) / seconds


def _soft_prompt(model: Model, ids: list[int], used: Used, repeats: int) -> dict[str, Any] | None:
    """What a soft prompt costs before the first token, beside computing as many tokens of text; None without one."""
    length = length_of(model.shelf.prefix(used))
    if not length:
        return None

    def first(prompt: list[int], adapters: Used) -> float:
        return round(1000 * statistics.median(_run(model, prompt, 0, adapters)[2] for _ in range(repeats)), 2)

    return {"tokens": length, "computed_tokens": len(ids), "first_token_ms": first(ids, used),
            "first_token_ms_if_computed": first([*ids[:1] * length, *ids], {}),
            "first_token_ms_without": first(ids, {})}


def describe(result: dict[str, Any]) -> str:
    """The result for a person."""
    rows: list[tuple[str, Any, Callable[[Any], str]]] = [
        ("prefill", result["prefill"], lambda value: f"{value:>10,.1f} tokens/s   ({result['prompt_tokens']} tokens)"),
        ("decode", result["decode"], lambda value: f"{value:>10,.1f} tokens/s   ({result['new_tokens']} tokens)"),
        ("first token", result["first_token_ms"], lambda value: f"{value:>10,.1f} ms after the request"),
        ("memory", result["peak_mib"], lambda value: f"{value:>10,.1f} MiB at the peak"),
        ("load", result["load_ms"], lambda value: f"{value:>10,.1f} ms"),
        ("adapter", result["adapter_price"],
         lambda value: f"{value:>10.1%} of decode: {result['base']['decode']:,.1f} tokens/s without it"),
        ("first load", result["first_load_ms"], lambda value: f"{value:>10,.2f} ms, opened, checked and packed"),
        ("swap", result["swap_ms"], lambda value: f"{value:>10,.3f} ms between two resident adapters"),
        ("batch", result["batch"], _describe_batch)]
    soft = result["soft_prompt"]
    return "\n".join([
        *(f"{name:<12}{show(value)}" for name, value, show in rows if value is not None),
        *([f"soft prompt of {soft['tokens']} tokens, copied: first token after {soft['first_token_ms']} ms, without it "
           f"{soft['first_token_ms_without']} ms, if it were computed {soft['first_token_ms_if_computed']} ms"]
          if soft else []),
        f"adapter {result['adapter'] or 'none'}, {result['threads']} threads, {result['quant']}, median of "
        f"{result['repeats']}"])


def draw(path: Path, name: str, result: Mapping[str, Any]) -> None:
    """Write the result as a bar chart."""
    write_chart(path, f"{name}: tokens per second and memory",
                f"{result['quant']}, {result['threads']} threads, {result['prompt_tokens']} + {result['new_tokens']} "
                f"tokens, adapter {result['adapter'] or 'none'}, median of {result['repeats']}", charted(result))


def _describe_batch(batch: dict[str, Any]) -> str:
    if "refused" in batch:
        return f" {batch['rows']} requests: {batch['refused']}"
    return (f"{batch['tokens_per_s']:>10,.1f} tokens/s, {batch['rows']} requests with {batch['adapters']} adapters "
            f"({batch['prompt_tokens']} + {batch['new_tokens']} tokens) all done; decode alone {batch['decode']:,.1f}")
