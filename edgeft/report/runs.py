"""A run's folder as the report needs it: what was asked for, what was measured, and how the loss went."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeft.contract.artifact import RECORD, read_artifact
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.files import read_json

from .fields import Fields

METRICS, COMPARISON = "metrics.jsonl", "comparison.json"
REPLAY = "replay"  # a set of that name, in a run with --replay, is text of the base's, and no task
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Score:
    """One set of lines, before and after: nats per token, or per example with accuracy for a classifier."""

    name: str
    loss: float
    before: float | None = None
    amount: float | None = None  # tokens or examples
    unit: str = "token"
    accuracy: float | None = None
    accuracy_before: float | None = None


@dataclass(frozen=True)
class Forgetting:
    """What was lost of the base: on a probe, on the base's own samples, and in grammar pairs."""

    fields: Fields

    @property
    def value(self) -> float | None:
        """Nats per token on the probe, tuned minus base; None where no probe was given."""
        return self.fields.number("forgetting")

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % of the bootstrap."""
        return self.fields.interval("interval")

    @property
    def probe(self) -> tuple[str, float | None]:
        """What makes two measurements comparable: the probe's name and its tokens."""
        return Path(self.fields.text("probe")).name, self.fields.number("tokens")

    @property
    def own(self) -> Fields:
        """KL to the base on the base's own samples."""
        return self.fields.inside("own_samples")

    @property
    def pairs(self) -> Fields:
        """Accuracy on pairs of a good and a bad sentence."""
        return self.fields.inside("pairs")


@dataclass
class Run:
    """One run that has ended."""

    folder: Path
    record: Fields
    curve: Points = field(default_factory=list)  # training loss by step
    evals: Points = field(default_factory=list)  # evaluation loss by step, the base's own at 0
    forgot: Points = field(default_factory=list)  # forgetting on the probe by step
    unread: int = 0  # lines of metrics.jsonl that are no JSON
    comparison: Fields | None = None
    label: str = ""
    index: int = 0  # of its colour and mark

    @property
    def method(self) -> str:
        """The method's name."""
        return self.record.text("method")

    @cached_property
    def metrics(self) -> Fields:
        """What training measured."""
        return self.record.inside("metrics")

    @property
    def base(self) -> str:
        """The base as a person calls it."""
        name = self.record.inside("base").text("id")
        return Path(name).name if name.startswith(("/", ".", "~")) else name

    @property
    def fingerprint(self) -> str:
        """The base's."""
        return self.record.inside("base").text("fingerprint")

    @property
    def grid(self) -> str:
        """The device and its grid that this learned on; empty for a float base."""
        grid, device = self.record.inside("grid"), self.record.text("device")
        if not grid:
            return device
        block = grid.number("block")
        rest = [f"block {block:g}"] if block else []
        rest += ["asymmetric"] if grid.value.get("symmetric") is False else []
        rest += [grid.text("rounding")] if grid.text("rounding") not in ("", "rtn") else []
        how = ", ".join([grid.text("quant"), *rest])
        name = grid.text("device") or device
        return f"{name}: {how}" if name else how

    @property
    def unit(self) -> str:
        """What a loss is counted per."""
        return "example" if self.record.value.get("labels") else "token"

    @cached_property
    def scores(self) -> list[Score]:
        """Of each evaluation set of a task."""
        return [score for score in self._all_scores if not self.replays(score.name)]

    @property
    def replayed(self) -> list[Score]:
        """Of the replayed text's own held-out lines."""
        return [score for score in self._all_scores if self.replays(score.name)]

    @cached_property
    def _all_scores(self) -> list[Score]:
        before = self.metrics.named("eval_base")
        return _scores((name, found, before.get(name)) for name, found in self.metrics.named("eval").items())

    def replays(self, name: str) -> bool:
        """Whether a set is of replayed text."""
        return name == REPLAY and bool(self.record.inside("settings").text(REPLAY))

    @cached_property
    def held_out(self) -> list[Score]:
        """Of each task that was never trained on."""
        return _scores((name, found, None) for name, found in self.metrics.named("held_out").items())

    @cached_property
    def score(self) -> Score | None:
        """All evaluation sets as one."""
        return total(self.scores)

    @cached_property
    def forgetting(self) -> Forgetting | None:
        """What was forgotten, if that was measured."""
        found = self.record.inside("forgetting")
        return Forgetting(found) if found else None

    @property
    def steps(self) -> float | None:
        """Steps that were taken."""
        return self.curve[-1][0] if self.curve else self.metrics.number("steps")

    @property
    def tasks(self) -> list[str]:
        """Names of what it was trained on."""
        return [item.text("name") for item in self.record.rows("data")]


def _scores(rows: Iterable[tuple[str, Fields, Fields | None]]) -> list[Score]:
    found = []
    for name, after, before in rows:
        loss = after.number("loss")
        if loss is None:
            continue
        unit = "example" if "examples" in after else "token"
        earlier = before or Fields(after.where, {"loss": after.number("base_loss")})
        found.append(Score(name, loss, earlier.number("loss"), after.number(f"{unit}s"), unit,
                           after.number("accuracy"), earlier.number("accuracy")))
    return found


def total(scores: Sequence[Score]) -> Score | None:
    """Several sets as one, each counting with its tokens or examples."""
    if len(scores) < 2:
        return scores[0] if scores else None
    weights = [score.amount or 1.0 for score in scores]

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        if len(known) < len(scores):
            return None
        return sum(value * weight for value, weight in zip(known, weights, strict=True)) / sum(weights)

    return Score(f"{len(scores)} sets", mean([score.loss for score in scores]) or 0.0,
                 mean([score.before for score in scores]), sum(weights), scores[0].unit,
                 mean([score.accuracy for score in scores]), mean([score.accuracy_before for score in scores]))


def read_run(folder: Path) -> Run:
    """Read a run that has ended; UsageError for anything else."""
    artifact = read_artifact(folder)
    if not artifact.record:
        raise UsageError(f"{folder}: has no record of its training ({RECORD}), so there is nothing to report. "
                         "`edgeft train` writes one.")
    run = Run(folder, Fields(f"{folder / RECORD}", artifact.record))
    if (folder / COMPARISON).is_file():
        run.comparison = Fields(f"{folder / COMPARISON}", read_json(folder / COMPARISON))
    _read_metrics(run)
    return run


def _read_metrics(run: Run) -> None:
    """Fill in the curves; of steps that a resumed run took twice, the later ones count."""
    losses: dict[float, float] = {}
    evals: dict[float, float] = {}
    probes: dict[float, float] = {}
    for line in _lines(run):
        step, loss = line.number("step"), line.number("loss")
        if step is None:
            continue
        if loss is not None:
            losses[step] = loss
        measured = line.inside("eval")
        score = total([score for score in _scores((name, found, None) for name, found in measured.named("sets").items())
                       if not run.replays(score.name)])
        if score is not None:
            evals[step] = score.loss
        probe = measured.inside("probe").number("loss")
        if probe is not None:
            probes[step] = probe
    last = max(losses, default=run.metrics.number("steps") or 0.0)  # fewer than planned where a loss was enough
    if run.score is not None:
        evals |= {last: run.score.loss} | ({0.0: run.score.before} if run.score.before is not None else {})
    run.curve, run.evals = sorted(losses.items()), sorted(evals.items())
    if run.forgetting is not None and (base := run.forgetting.fields.number("base_loss")) is not None:
        ends = {0.0: 0.0} | ({last: run.forgetting.value} if run.forgetting.value is not None else {})
        run.forgot = sorted({**{step: loss - base for step, loss in probes.items()}, **ends}.items())


def _lines(run: Run) -> Iterable[Fields]:
    path = run.folder / METRICS
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            for number, text in enumerate(stream, 1):
                try:
                    value: Any = json.loads(text)
                except (ValueError, RecursionError):
                    value = None
                if isinstance(value, dict):
                    yield Fields(f"{path}, line {number}", value)
                else:
                    run.unread += 1
    except FileNotFoundError:
        return
    except OSError as error:
        raise EdgeftError(f"{path}: cannot be read ({error.strerror})") from None


def smooth(points: Points) -> Points:
    """An exponential average over about a twentieth of the steps, without the pull of its start."""
    keep = 1 - 1 / max(1.0, len(points) / 20)
    mean, weight, made = 0.0, 0.0, []
    for step, loss in points:
        mean, weight = keep * mean + (1 - keep) * loss, keep * weight + (1 - keep)
        made.append((step, mean / weight))
    return made


def thin(points: Points, most: int = 240) -> Points:
    """At most so many points, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[math.floor(index * (len(points) - 1) / (most - 1))] for index in range(most)]
