"""Which charts a group of comparable runs gets, and what each says in words."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import charts
from .charts import Line
from .collect import Group
from .format import fixed, signed
from .runs import Run, smooth
from .trade import Point, best, pareto

FEW = 3  # so many runs or fewer: the losses are shown before they were smoothed, too


@dataclass(frozen=True)
class Picture:
    """A chart, what stands above it and what it says."""

    name: str
    markup: str
    note: str


@dataclass
class Trade:
    """Task against forgetting for runs measured on one probe."""

    name: str
    picture: Picture | None
    kept: list[Run] = field(default_factory=list)  # the Pareto front
    runs: list[Run] = field(default_factory=list)


def curves(group: Group) -> list[Picture]:
    """Training loss, evaluation loss and forgetting by step, where there is anything to draw."""
    unit = f"nats per {group.counted}"
    few = len(group.runs) <= FEW
    training = [Line(run.label, run.index, smooth(run.curve), run.curve if few else None)
                for run in group.runs if run.curve]
    evaluated = [Line(run.label, run.index, run.evals, marks=True) for run in group.runs if len(run.evals) > 1]
    forgot = [Line(run.label, run.index, run.forgot, marks=True) for run in group.runs if len(run.forgot) > 2]
    found = []
    for name, lines, of, note in (
            ("Training loss", training, unit, "Smoothed over a twentieth of the steps"
                                              + ("; faint: as it was." if few else ".")),
            ("Evaluation loss", evaluated, unit, "Step 0 is the base."),
            ("Forgetting while training", forgot, "nats per token above the base",
             "Loss on the probe minus the base's.")):
        if lines:
            said = "; ".join(f"{line.label} from {fixed(line.points[0][1])} to {fixed(line.points[-1][1])}"
                             for line in lines)
            found.append(Picture(name, charts.curves(lines, f"{name}: {group.name}", said, of), note))
    return found


def trades(group: Group) -> list[Trade]:
    """The Pareto pictures: one for each probe, and one for the base's own samples where some run has no probe."""
    if not group.measured:
        return []
    probes: dict[tuple[str, float | None], list[Run]] = {}
    own = []
    for run in group.runs:
        found = run.forgetting
        if found is not None and found.value is not None:
            probes.setdefault(found.probe, []).append(run)
        elif found is not None and found.own.number("kl") is not None:
            own.append(run)
    made = [_trade(group, runs, f"on {name[0] or 'the probe'}", "forgetting, nats per token", own=False)
            for name, runs in probes.items()]
    if own:
        everyone = [run for run in group.runs if run.forgetting and run.forgetting.own.number("kl") is not None]
        made.append(_trade(group, everyone, "on the base's own samples", "KL to the base, nats per token", own=True))
    return made


def _trade(group: Group, runs: list[Run], name: str, x_name: str, *, own: bool) -> Trade:
    accuracy = all(run.score is not None and run.score.accuracy is not None for run in runs)
    points = [_point(run, own=own, accuracy=accuracy) for run in runs]
    y_name = "accuracy" if accuracy else f"task loss, nats per {group.counted}"
    kept = best(points, more_is_better=accuracy)
    said = "; ".join(f"{point.label}: {y_name.partition(',')[0]} {fixed(point.y)}, {signed(point.x)}"
                     for point in points)
    picture = Picture(f"Task against forgetting {name}",
                      pareto(points, f"Task against forgetting {name}: {group.name}",
                                    f"{said}. On the Pareto front: {', '.join(points[item].label for item in kept)}.",
                                    (x_name, y_name), more_is_better=accuracy),
                      "Each mark is a run; bars are 95 % intervals. The dashed line is the Pareto front: no run given "
                      "betters a run on it in both."
                      + ("" if any(point.interval for point in points) else " No interval was recorded."))
    return Trade(name, picture, [runs[item] for item in kept], runs)


def _point(run: Run, *, own: bool, accuracy: bool) -> Point:
    found = run.forgetting
    assert found is not None
    assert run.score is not None
    x, interval = (found.own.number("kl"), found.own.interval("interval")) if own else (found.value, found.interval)
    y = run.score.accuracy if accuracy else run.score.loss
    return Point(run.label, run.index, x or 0.0, y or 0.0, interval)
