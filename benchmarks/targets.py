"""What the runner must reach, beside what it did; a piece of runtime.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PRICES = {"135m": 0.28, "360m": 0.18}  # share of decode that the adapter may take


@dataclass(frozen=True)
class Row:
    """One line of the result: a ratio to a peer where there is one, else the value itself."""

    what: str
    shape: str
    ours: float
    theirs: float | None
    target: float
    most: bool = False  # whether the target is an upper bound

    @property
    def value(self) -> float:
        """What the target is about."""
        return self.ours / self.theirs if self.theirs else self.ours

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.value <= self.target if self.most else self.value >= self.target


def rated(shape: str, found: dict[str, dict[str, float]], parts: set[str]) -> list[Row]:
    """The rows of one shape, of those parts whose programs ran."""
    rows = {"speed": _speed, "lora": _lora, "swarm": _swarm, "memory": _memory, "swap": _swap, "start": _start}
    return [Row(what, shape, *rest) for part, make in rows.items() if part in parts
            for what, *rest in make(shape, found)]


def rated_drafts(found: dict[str, Any]) -> list[Row]:
    """Decode with drafts against the same without."""
    return [row for quant, one in found.items() for row in (
        Row(f"drafts, answers that copy, {quant}", "stories3m", one["copying_with"], one["copying_without"], 1.5),
        Row(f"drafts, other text, {quant}", "stories3m", one["stories_with"], one["stories_without"], 0.97))]


def _speed(shape: str, found: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    mine = found["edgeft"]
    for name, decode, prefill in (("llama.cpp", 1.0, 1.0), ("genai", 1.8, 2.0)):
        if name in found:
            yield f"decode / {name}", mine["base_decode"], found[name]["decode"], decode
            yield f"prefill / {name}", mine["base_prefill"], found[name]["prefill"], prefill


def _lora(shape: str, found: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    mine, theirs = found["edgeft"], found.get("llama.cpp, adapter")
    if theirs:
        yield "decode with LoRA / llama.cpp", mine["decode"], theirs["decode"], 1.05
    yield "price of the LoRA in decode", mine["adapter_price"], None, PRICES.get(shape, 0.28), True


def _swarm(shape: str, found: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    mine, all_done, alone = (found.get(name) for name in ("edgeft", "llama.cpp, swarm", "llama.cpp, adapter"))
    if mine and all_done and alone:
        yield "8 adapters, all done / llama.cpp", mine["batch_tokens_per_s"], all_done["tokens_per_s"], 1.6
        yield "8 adapters, decode / its single stream", mine["batch_decode"], alone["decode"], 2.2


def _memory(shape: str, found: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    mine = found["memory"]["none"]
    if shape != "360m":
        yield "peak MiB of edgeft run", mine, None, 170.0, True
    elif "llama.cpp" in found:
        yield "peak MiB of edgeft run / llama.cpp", mine, found["llama.cpp"]["peak_mib"], 1.0, True


def _swap(shape: str, found: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    yield "switching, ms", found["edgeft"]["swap_ms"], None, 1.0, True
    yield "first load, ms", found["edgeft"]["first_load_ms"], None, 30.0, True


def _start(shape: str, found: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    if shape != "360m":
        yield "process start to first token, s", found["start"]["seconds"], None, 0.7, True
