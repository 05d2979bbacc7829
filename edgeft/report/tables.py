"""The page's tables: what each cell says; the template only sets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .collect import Made, Subject
from .fields import Fields
from .format import DASH, between, compact, count, duration, fixed, mib, percent, scientific, signed
from .runs import Run, Score


@dataclass(frozen=True)
class Cell:
    """What a cell says, with a second line in small letters, and the colour and mark of a run."""

    text: str
    small: str = ""
    run: Run | None = None


@dataclass
class Table:
    """Columns, those of numbers marked by a leading #, and rows; the first cell of a row heads it."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]]

    def without_empty(self) -> Table:
        """Without columns in which nothing is known."""
        kept = [index for index in range(len(self.columns))
                if not self.rows or any(row[index].text != DASH or row[index].small for row in self.rows)]
        return Table(self.caption, [self.columns[index] for index in kept],
                     [[row[index] for index in kept] for row in self.rows])


def runs(found: Sequence[Run]) -> Table:
    """All runs side by side."""
    return Table("Runs", ["run", "method", "base", "grid", "#learns", "#loss before", "#loss after", "#forgetting",
                          "#tokens/s", "#time", "#peak MiB"], [_run(run) for run in found])


def _run(run: Run) -> list[Cell]:
    metrics, score = run.metrics, run.score
    learns, total = metrics.number("trained_parameters"), metrics.number("parameters")
    forgot = run.forgetting
    own = forgot.own.number("kl") if forgot else None
    small = between(forgot.interval) if forgot else ""
    if forgot and forgot.value is None and own is not None:
        small = f"KL on own samples {fixed(own)}"
    steps, tokens = run.steps, metrics.number("tokens")
    return [Cell(run.label, "", run), Cell(run.method), Cell(run.base or DASH), Cell(run.grid or "float"),
            Cell(compact(learns), percent(learns / total) if learns is not None and total else ""),
            _loss(score.before, score.accuracy_before) if score else Cell(DASH),
            _loss(score.loss, score.accuracy) if score else Cell(DASH),
            Cell(signed(forgot.value) if forgot else DASH, small),
            Cell(count(metrics.number("tokens_per_s")), f"{compact(tokens)} tokens" if tokens is not None else ""),
            Cell(duration(metrics.number("seconds")), f"{count(steps)} steps" if steps is not None else ""),
            Cell(count(metrics.number("peak_mib")))]


def _loss(loss: float | None, accuracy: float | None) -> Cell:
    """A loss, of a classifier with its accuracy."""
    return Cell(fixed(loss), "" if accuracy is None else f"{percent(accuracy)} right")


def evaluations(found: Sequence[Run]) -> Table | None:
    """Each evaluation set of runs that have several, and each task that was never trained on."""
    rows = [(run, score, kind) for run in found
            for kind, scores in (("evaluation", run.scores if len(run.scores) > 1 else []), ("replay", run.replayed),
                                 ("never trained on", run.held_out)) for score in scores]
    if not rows:
        return None
    return Table("Tasks", ["run", "task", "kind", "#before", "#after", "#change", "#accuracy", "#measured on"],
                 [[Cell(run.label, "", run), Cell(score.name), Cell(kind), Cell(fixed(score.before)),
                   Cell(fixed(score.loss)), Cell(_change(score)), Cell(percent(score.accuracy)),
                   Cell(f"{count(score.amount)} {score.unit}s")] for run, score, kind in rows]).without_empty()


def _change(score: Score) -> str:
    return signed(score.loss - score.before) if score.before is not None else DASH


def forgetting(found: Sequence[Run]) -> Table | None:
    """All that was measured of what each run forgot."""
    rows = []
    for run in found:
        forgot = run.forgetting
        if forgot is None:
            continue
        fields, own, pairs = forgot.fields, forgot.own, forgot.pairs
        probe, tokens = forgot.probe
        before, after = fields.number("base_loss"), fields.number("tuned_loss")
        losses = f"{fixed(before)} to {fixed(after)}" if before is not None and after is not None else ""
        rows.append([Cell(run.label, "", run), Cell(probe or DASH, f"{count(tokens)} tokens" if tokens else ""),
                     Cell(signed(forgot.value), between(forgot.interval)), Cell(losses or DASH),
                     Cell(fixed(fields.number("kl"))),
                     Cell(fixed(own.number("kl")), _plain_interval(own.interval("interval"))),
                     Cell(_pairs(pairs), _pairs_small(pairs))])
    columns = ["run", "probe", "#forgetting", "#loss on the probe", "#KL on the probe", "#KL on own samples",
               "#grammar pairs right"]
    return Table("Forgetting", columns, rows).without_empty() if rows else None


def _plain_interval(interval: tuple[float, float] | None) -> str:
    return f"[{fixed(interval[0])}, {fixed(interval[1])}]" if interval else ""


def _pairs(pairs: Fields) -> str:
    before, after = pairs.number("base_accuracy"), pairs.number("accuracy")
    if after is None:
        return DASH
    return f"{percent(before)} to {percent(after)}" if before is not None else percent(after)


def _pairs_small(pairs: Fields) -> str:
    interval, many = pairs.interval("interval"), pairs.number("pairs")
    parts = [f"[{percent(interval[0])}, {percent(interval[1])}]"] if interval else []
    return ", ".join([*parts, *([f"{count(many)} pairs"] if many is not None else [])])


def bundles(found: Sequence[Made]) -> Table:
    """What was made for which device, and what it takes there."""
    rows = []
    for made in found:
        manifest = made.manifest
        device, memory, quant = (manifest.inside(key) for key in ("device", "memory", "quant"))
        block = quant.number("block")
        adapters = [subject for subject in made.subjects if subject.kind == "adapter"]
        rows.append([Cell(made.label), Cell(device.text("name") or DASH),
                     Cell(quant.text("kind") or DASH, f"block {block:g}" if block else ""),
                     Cell(", ".join(subject.name for subject in adapters) or "none: one model",
                          f"{mib(sum(item.size or 0 for item in adapters))} MiB" if adapters else ""),
                     Cell(mib(made.size)), Cell(count(manifest.number("context"))),
                     Cell(count(memory.number("predicted_peak_mib")), _budget(device)),
                     Cell(count(memory.number("verified_peak_mib")))])
    return Table("Bundles", ["bundle", "device", "weights", "adapters", "#size, MiB", "#context",
                             "#predicted peak, MiB", "#peak of verification, MiB"], rows).without_empty()


def _budget(device: Fields) -> str:
    budget = device.inside("limits").number("budget_mib")
    return f"of {count(budget)} given" if budget is not None else ""


def parity(found: Sequence[Made]) -> Table:
    """How equal each bundle is to torch, its base and every adapter."""
    rows = []
    for made in found:
        for subject in made.subjects:
            exact = subject.report.inside("exact_activations")
            proof = exact if exact else subject.report
            device = subject.report if exact else Fields(subject.report.where, {})
            rows.append([Cell(made.label), Cell(subject.name, "" if subject.kind == subject.name else subject.kind),
                         _origin(subject), Cell(_greedy(proof)),
                         Cell(scientific(proof.number("largest_logit_difference"))),
                         Cell(percent(device.number("agreement"))), Cell(fixed(device.number("kl"), 4)),
                         Cell(percent(subject.report.inside("against_float").number("agreement"))),
                         Cell(fixed(subject.report.inside("against_float").number("kl"), 4)),
                         Cell(fixed(subject.report.number("effect"), 2)), _forgets(subject)])
    columns = ["bundle", "what", "run", "#greedy answers equal", "#largest logit difference",
               "#as on the device: tokens agree", "#as on the device: KL", "#against float: tokens agree",
               "#against float: KL", "#changes logits by", "#forgets"]
    return Table("Parity", columns, rows).without_empty()


def _forgets(subject: Subject) -> Cell:
    """As the bundle says it; a budget for forgetting chose the scale that it ships."""
    found, scale, budget = (subject.entry.inside("forgetting"), subject.entry.number("scale"),
                            subject.entry.number("forgetting_budget"))
    small = f"at scale {scale:g}, budget {budget:g}" if scale is not None and budget is not None else \
        between(found.interval("interval"))
    return Cell(signed(found.number("forgetting")), small)


def _origin(subject: Subject) -> Cell:
    if subject.run is not None:
        return Cell(subject.run.label, "", subject.run)
    return Cell(Path(subject.source).name, "not among the runs here") if subject.source else Cell(DASH)


def _greedy(proof: Fields) -> str:
    equal, prompts = proof.number("greedy_equal"), proof.number("prompts")
    return DASH if equal is None or prompts is None else f"{equal:g} of {prompts:g}"


FLOAT, MERGED, GRID = "float merged", "merged, then quantized", "trained on the grid"


def losses_of(comparison: Fields) -> dict[str, float]:
    """Loss by way."""
    found = {row.text("way"): row.number("loss") for row in comparison.rows("rows")}
    return {way: loss for way, loss in found.items() if loss is not None}


def recovered(losses: dict[str, float], way: str) -> float | None:
    """The share of what merging into the grid loses that another way does not lose."""
    if way not in losses or FLOAT not in losses or losses.get(MERGED, 0.0) <= losses[FLOAT]:
        return None
    return (losses[MERGED] - losses[way]) / (losses[MERGED] - losses[FLOAT])


def comparison(found: Fields) -> Table:
    """The four ways of one run."""
    losses = losses_of(found)
    rows = []
    for row in found.rows("rows"):
        way, loss, metric = row.text("way"), row.number("loss"), row.inside("metric")
        above = loss - losses[FLOAT] if loss is not None and FLOAT in losses and way != FLOAT else None
        rows.append([Cell(way), Cell(fixed(loss), f"{count(row.number('tokens'))} tokens" if "tokens" in row else ""),
                     Cell(signed(above)), Cell(percent(recovered(losses, way)) if way not in (FLOAT, MERGED) else DASH),
                     Cell(fixed(row.number("size_mib"), 1)), Cell(fixed(row.number("decode_tokens_per_s"), 1)),
                     Cell(fixed(metric.number("value")), metric.text("name"))])
    rows += [[Cell(way), Cell(DASH, f"impossible: {reason}"), *[Cell(DASH)] * 5]
             for way, reason in found.words("impossible").items()]
    return Table("Four ways to the same device", ["way", "#loss", "#above float", "#recovered", "#size, MiB",
                                                  "#decode, tokens/s", "#task metric"], rows).without_empty()


def data(run: Run) -> Table | None:
    """The files that a run read, with their digests."""
    rows = [[Cell(item.text("name") or DASH), Cell(item.text("path") or DASH), Cell(count(item.number("examples"))),
             Cell(f"{item.number('weight'):g}" if "weight" in item else DASH), Cell(item.text("sha256") or DASH)]
            for item in run.record.rows("data")]
    return Table("Data", ["task", "file", "#examples", "#weight", "SHA-256"], rows).without_empty() if rows else None
