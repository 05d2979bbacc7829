"""Whether a model fits a device, how fast it will be there, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .device import Device
from .errors import UsageError
from .plan import Plan, Wish, plan
from .shape import Recorded, Shape
from .speed import Speed, speed

STEP = 64  # tokens: a shorter context is told in such steps
LEAST = 128  # tokens: a context below is of no use
WIDEST = 128  # block: above, quality falls for little memory


@dataclass(frozen=True)
class Way:
    """One change that takes less memory, and what the peak is then."""

    what: str
    wish: Wish
    peak_mib: float
    fits: bool

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {"change": self.what, "peak_mib": round(self.peak_mib, 1), "fits": self.fits}


@dataclass(frozen=True)
class Fit:
    """A model on a device."""

    shape: Shape
    device: Device
    wish: Wish
    plan: Plan
    speed: Speed

    @property
    def budget_mib(self) -> int:
        """What the device gives a bundle."""
        return self.device.limits.budget_mib

    @property
    def fits(self) -> bool:
        """Whether the bundle fits as it is exported."""
        return self.plan.peak_mib <= self.budget_mib

    @property
    def over_mib(self) -> float:
        """How much too much it is; 0 where it fits."""
        return max(0.0, self.plan.peak_mib - self.budget_mib)

    def ways(self) -> list[Way]:
        """What takes less, the cheapest first; the last one is all of it together. Empty where it fits."""
        if self.fits:
            return []
        made, every = list[Way](), self.wish
        installed = self.plan.installed_mib
        if installed < self.plan.peak_mib:
            made.append(Way("`edgeft install` on the device (costs disk, nothing else)", self.wish, installed,
                            installed <= self.budget_mib))
        for what, change in self._changes():
            wish = change(self.wish)
            made.append(self._way(what.format(wish=wish), wish))
            every = change(every)
        if len(made) > 1 and not any(way.fits for way in made):
            made.append(self._way("all of these together", every))
        return made

    def _way(self, what: str, wish: Wish) -> Way:
        peak = plan(self.shape, wish).peak_mib
        return Way(what, wish, peak, peak <= self.budget_mib)

    def _changes(self) -> Iterator[tuple[str, Callable[[Wish], Wish]]]:
        """By what they cost: swaps between adapters, then length, then quality."""
        quant = self.wish.quant
        if self.wish.adapters > 1:
            yield "{wish.adapters} resident adapter(s) (others are loaded when they are asked for)", self._fewer
        if self.wish.context > LEAST and self.shape.cached:
            yield "a context of {wish.context} tokens", self._shorter
        if quant.kind in ("fp32", "fp16"):
            yield "--quant int8", lambda wish: wish.but(quant=self.device.graph.grid("int8"))
        if quant.kind != "int4":
            yield "--quant int4 (quality: docs/grids.md)", lambda wish: wish.but(quant=self.device.graph.grid("int4"))
        elif quant.block < WIDEST:
            yield (f"--block {WIDEST} instead of {quant.block} (quality: docs/grids.md)",
                   lambda wish: wish.but(quant=quant.but(block=WIDEST)))

    def _fewer(self, wish: Wish) -> Wish:
        return self._largest([wish.but(adapters=count) for count in range(wish.adapters - 1, 0, -1)])

    def _shorter(self, wish: Wish) -> Wish:
        return self._largest([wish.but(context=length) for length in
                              range((wish.context - 1) // STEP * STEP, LEAST - 1, -STEP)] or [wish.but(context=LEAST)])

    def _largest(self, wishes: list[Wish]) -> Wish:
        """The first that fits, from the largest on; the smallest where none does."""
        return next((wish for wish in wishes if plan(self.shape, wish).peak_mib <= self.budget_mib), wishes[-1])

    def describe_ways(self) -> str:
        """What would help, for a person: one line each."""
        lines = [f"  {way.peak_mib:>8,.0f} MiB  {'fits' if way.fits else 'too much'}  {way.what}"
                 for way in self.ways()]
        return "\n".join(lines) if lines else "  a smaller model"

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        decode = self.speed.decode
        return {"fits": self.fits, "peak_mib": round(self.plan.peak_mib, 1),
                "installed_peak_mib": round(self.plan.installed_mib, 1), "budget_mib": self.budget_mib,
                "prefill_tokens_per_s": round(self.speed.prefill, 1),
                "decode_tokens_per_s": None if decode is None else round(decode, 1),
                "model": self.shape.name, "device": self.device.name, "quant": self.wish.quant.to_json(),
                "context": self.wish.context, "adapters": self.wish.adapters, "rank": self.wish.rank,
                "parts": self.plan.to_json(), "over_mib": round(self.over_mib, 1),
                "ways": [way.to_json() for way in self.ways()]}


def fit(shape: Shape, device: Device, wish: Wish) -> Fit:
    """A model as it is wished for, on a device; UsageError for a wish that this model cannot be."""
    if wish.quant.kind not in device.quants():
        raise UsageError(f"--quant {wish.quant.kind}: {device.name} does not compute in it. It runs "
                         f"{', '.join(device.quants())}.")
    if wish.context > shape.context:
        raise UsageError(f"--context {wish.context}: {shape.name} was made for {shape.context} tokens at most.")
    if wish.adapters and not device.graph.slots:
        raise UsageError(f"--adapters {wish.adapters}: the graphs of {device.name} take none beside the base. "
                         "Leave it out, and merge.")
    return Fit(shape, device, wish, plan(shape, wish), speed(shape, wish, device))


def wish_for(shape: Shape, device: Device, recorded: Recorded | None, *, quant: str | None = None,
             block: int | None = None, context: int | None = None, adapters: int | None = None,
             rank: int | None = None) -> Wish:
    """What is asked for, filled up by the device file, or by what a bundle has decided already."""
    if recorded is None:
        return Wish(device.graph.grid(quant).but(block=block), context or min(device.graph.context, shape.context),
                    adapters or 0, rank or 16, budget_mib=device.limits.budget_mib)
    if (quant or block) and device.graph.grid(quant or recorded.quant.kind).but(block=block) != recorded.quant:
        raise UsageError(f"{shape.name}: is a bundle on {recorded.quant}. Another grid is another export; name the "
                         "model folder to try it.")
    if adapters and not recorded.slots:
        raise UsageError(f"--adapters {adapters}: {shape.name} was merged, and takes none beside its base.")
    given = adapters is None and not rank
    return Wish(recorded.quant, context or min(recorded.context, device.graph.context),
                recorded.adapters if adapters is None else adapters, rank or recorded.rank,
                recorded.adapter if given and recorded.adapters else 0, device.limits.budget_mib)
