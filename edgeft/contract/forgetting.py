"""What tuning destroyed, as numbers: losses of base and tuned model by line, grammar pairs, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .data import Example, Tokenizer, encode_text, read_lines
from .errors import EdgeftError, Faults

Array = np.ndarray[Any, Any]
LEVEL, DRAWS, SEED = 0.95, 2000, 0  # of every interval
WINDOW = 1024  # tokens of a probe's line that are read at once, where the context is no shorter
CELLS = 1 << 20  # lines times draws that are resampled at once


def interval(sums: Sequence[float], weights: Sequence[float]) -> list[float]:
    """[low, high]: the 95 % bootstrap interval of sum(sums) / sum(weights), over lines that are drawn whole.

    Percentiles of 2,000 seeded resamples (Efron and Tibshirani 1993, chapter 13). Where `sums` are differences of two
    models on the same lines, the interval is the paired one.
    """
    values = np.stack([np.asarray(sums, np.float64), np.asarray(weights, np.float64)], axis=1)  # [lines, 2]
    lines, rng = len(values), np.random.Generator(np.random.PCG64(SEED))
    means: list[float] = []
    while len(means) < DRAWS:
        count = min(max(1, CELLS // lines), DRAWS - len(means))
        drawn = values[rng.integers(lines, size=(count, lines))].sum(axis=1)
        means += (drawn[:, 0] / drawn[:, 1]).tolist()
    tail = 50 * (1 - LEVEL)
    return [float(bound) for bound in np.percentile(means, [tail, 100 - tail])]


def compare_losses(tokens: Sequence[int], base: Sequence[float], tuned: Sequence[float],
                   kl: Sequence[float]) -> dict[str, Any]:
    """Forgetting in nats per token, tuned minus base, with interval and KL(base || tuned), from sums over each line."""
    count, change = sum(tokens), np.subtract(tuned, base)
    return {"forgetting": float(change.sum()) / count, "interval": interval(change.tolist(), tokens),
            "kl": float(np.sum(kl)) / count, "tokens": count, "base_loss": float(np.sum(base)) / count,
            "tuned_loss": float(np.sum(tuned)) / count}


def with_loss(path: Path, lines: Sequence[Sequence[Example]]) -> list[Sequence[Example]]:
    """The lines of a probe that have tokens with loss; EdgeftError if none has."""
    found = [line for line in lines if any(any(example.mask) for example in line)]
    if not found:
        raise EdgeftError(f"{path}: no line has two tokens, so nothing in it is predicted.")
    return found


def as_evaluated(found: dict[str, Any]) -> dict[str, Any]:
    """The same as `edgeft eval` tells it, beside the loss on other data."""
    return {"forgetting": found["forgetting"], "interval": found["interval"], "kl": found["kl"],
            "probe_tokens": found["tokens"], "probe_base_loss": found["base_loss"], "probe_loss": found["tuned_loss"]}


def compare_samples(tokens: Sequence[int], kl: Sequence[float]) -> dict[str, Any]:
    """KL(base || tuned) in nats per token on texts that the base wrote itself, from sums over each text."""
    return {"kl": float(np.sum(kl)) / sum(tokens), "interval": interval(kl, tokens), "tokens": sum(tokens),
            "samples": len(tokens)}


def compare_pairs(path: Path, base: Sequence[float] | None, tuned: Sequence[float]) -> dict[str, Any]:
    """Share of pairs whose good sentence is likelier; losses in the order good, bad, good, bad, ...

    `interval` is that of `accuracy`, `change_interval` that of its paired difference from `base_accuracy`.
    """
    right = _right(tuned)
    found: dict[str, Any] = {"path": str(Path(path).resolve()), "pairs": len(right), "base_accuracy": None,
                             "accuracy": float(right.mean()), "interval": interval(right.tolist(), [1] * len(right))}
    if base is not None:
        before = _right(base)
        found |= {"base_accuracy": float(before.mean()),
                  "change_interval": interval((right - before).tolist(), [1] * len(right))}
    return found


def _right(losses: Sequence[float]) -> Array:
    """1 where the good sentence's summed loss is below the bad one's."""
    pairs = np.asarray(losses, np.float64).reshape(-1, 2)
    return np.asarray(pairs[:, 0] < pairs[:, 1], np.float64)


def read_pairs(path: Path, tokenizer: Tokenizer, start: int | None, context: int) -> list[Example]:
    """The sentences of `{"good", "bad"}` lines in that order, every token but the first with loss.

    Where the tokenizer opens no text with a token of its own, `start` does: something must predict the first word.
    """
    records = read_lines(path, _check_pair, '--pairs takes lines of {"good": ..., "bad": ...}: two sentences that '
                                            "differ in their grammar.")
    faults = Faults(f"{path}: has sentences that cannot be scored")
    examples = []
    for number, record in enumerate(records, 1):
        for name in ("good", "bad"):
            ids = opened(tokenizer, record[name], start)
            if not 2 <= len(ids) <= context:
                faults.add(f"pair {number}: {name!r} has {len(ids)} tokens (2 to {context} are needed)")
            examples.append(Example(ids, [False] + [True] * (len(ids) - 1)))
    faults.raise_if_any()
    return examples


def opened(tokenizer: Tokenizer, text: str, start: int | None) -> list[int]:
    """Token ids of a text behind the tokenizer's own first token, or behind `start` if it has none."""
    ids = encode_text(tokenizer, text)
    plain = tokenizer.encode(text, add_special_tokens=False).ids
    return [start, *ids] if start is not None and ids[:1] == plain[:1] else ids


def _check_pair(record: Any) -> str:
    """ValueError with the reason unless this is a pair; the kind that it is."""
    for name in ("good", "bad"):
        if not isinstance(record, dict) or not isinstance(record.get(name), str) or not record[name].strip():
            raise ValueError(f"needs {name!r} with text")
    return "grammar"


def describe_forgetting(found: dict[str, Any] | None) -> list[str]:
    """What edgeft.json holds of it, a line each for a person; records of earlier versions hold less."""
    found, lines = found or {}, []
    if found.get("forgetting") is not None:
        lines.append(f"forgetting: {found['forgetting']:+.3f}{_between(found.get('interval'), '+.3f')} nats per token "
                     f"on the probe{_kl(found)}")
    own = found.get("own_samples")
    if own:
        lines.append(f"forgetting:{_kl(own)[1:]}{_between(own['interval'], '.3f')} nats per token on "
                     f"{own['samples']} texts that the base wrote itself ({own['tokens']:,} tokens)")
    pairs = found.get("pairs")
    if pairs:
        before = "" if pairs.get("base_accuracy") is None else f"{pairs['base_accuracy']:.1%} before, "
        lines.append(f"grammar: {before}{pairs['accuracy']:.1%}{_between(pairs['interval'], '.1%')} of "
                     f"{pairs['pairs']:,} pairs right")
    return lines


def _kl(found: dict[str, Any]) -> str:
    return f", KL from the base {found['kl']:.3f}" if found.get("kl") is not None else ""


def _between(bounds: Sequence[float] | None, form: str) -> str:
    return f" [{bounds[0]:{form}}, {bounds[1]:{form}}]" if bounds else ""
