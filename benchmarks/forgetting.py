"""What tuning makes a model forget, at equal loss on the task, and what holds it back: one table, one picture.

    python benchmarks/forgetting.py --chart forgetting.svg     stories3m on e2e, about a quarter of an hour on two cores

Prompt tuning, which learns least, trains for --steps; its loss on e2e/valid is the target of all others: each stops at
the first evaluation that reaches it (`edgeft train --stop-at-loss`), at a lower learning rate where a single step falls
more than 2 % below it. Then, in torch (`edgeft eval RUN`):

  forgetting  nats per token on tinystories/probe, tuned minus base, with its 95 % interval over lines
  KL          from the base, nats per token on the probe
  Zorro       share of grammar pairs whose good sentence is likelier

Full tuning is there in a dozen steps. So it goes on to --further of that loss, where forgetting hurts, and there with
each limit, at equal loss again: replay of source text, KL to the base, distance from the start, and interpolation,
whose weight is sought. Last the LoRA by its scale, on the exported bundle, measured by the runner. With --work FOLDER
runs stay there, and a second call goes on from them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import E2E, EDGEFT, SHARED, STORIES, arguments, machine, need, run, say, start, table, workspace

WITHIN = 0.02  # of the target
TRIES = 5
SCALES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Way:
    """One row: a method and its limits; `every` steps lie between evaluations."""

    method: str
    options: tuple[str, ...] = ()
    every: int = 1


METHODS = {"prefix tuning": Way("prefix_tuning", every=2), "LoRA": Way("lora"), "full": Way("full")}
FURTHER = "full, further"  # the row that the limits are compared with


def limits(args: Any) -> dict[str, Way]:
    """Full tuning with each limit but interpolation, whose weight is sought."""
    given = {FURTHER: (), **{f"full, {share:.0%} replay": ("--replay", f"{args.replay}:{share}")
                             for share in (0.01, 0.05)},
             f"full, KL to base {args.kl:g}": ("--kl-to-base", str(args.kl)),
             f"full, L2 to start {args.l2:g}": ("--l2-to-start", str(args.l2))}
    return {name: Way("full", options, every=2) for name, options in given.items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", type=Path, default=STORIES)
    parser.add_argument("--data", type=Path, default=E2E / "train.jsonl")
    parser.add_argument("--valid", type=Path, default=E2E / "valid.jsonl")
    parser.add_argument("--probe", type=Path, default=SHARED / "data" / "tinystories" / "probe.jsonl")
    parser.add_argument("--replay", type=Path, default=SHARED / "data" / "tinystories" / "train.jsonl")
    parser.add_argument("--pairs", type=Path, default=SHARED / "data" / "zorro" / "pairs.jsonl")
    parser.add_argument("--steps", type=int, default=264, help="at most, and of prompt tuning (264: one epoch of e2e)")
    parser.add_argument("--further", type=float, default=0.6, help="loss of the rows with limits, of the first")
    parser.add_argument("--kl", type=float, default=0.5, help="weight of --kl-to-base")
    parser.add_argument("--l2", type=float, default=1.0, help="weight of --l2-to-start")
    parser.add_argument("--chart", type=Path, help="draw the table into this SVG file")
    args = parser.parse_args()
    need(args.base, args.data, args.valid, args.probe, args.replay, args.pairs)
    with workspace(args) as work:
        report = measure_all(args, work)
    if args.chart:
        draw(args.chart, report)
    print(json.dumps(report, indent=2) if args.json else describe(report))


def measure_all(args: Any, work: Path) -> dict[str, Any]:
    """Every row, and the LoRA's scales."""
    first = train(args, work / "prompt_tuning", Way("prompt_tuning"), ())
    target = task_loss(first)
    rows, runs = {"prompt tuning": row(args, work / "prompt_tuning", target)}, {}
    rates: dict[str, float] = {}  # the rate that took a method to the target is that of its other rows
    further = args.further * target
    for number, (name, way) in enumerate({**METHODS, **limits(args)}.items()):
        goal = target if name in METHODS else further
        say(f"{name}: to a loss of {goal:.3f}")
        runs[name] = reach(args, work / f"{number}-{way.method}", way, goal, rates.get(way.method, 0.0))
        rows[name] = row(args, runs[name], goal)
        rates[way.method] = rows[name]["learning_rate"]
    say("full, interpolated: seeking the weight")
    weight, folder = interpolate(args, work / "interpolated", further, rates["full"])
    rows[f"full, interpolated {weight:g}"] = row(args, folder, further)
    return {"benchmark": "forgetting", "machine": machine(), "steps": args.steps, "target": target, "further": further,
            "rows": rows,
            "scales": {str(scale): by_scale(args, work, runs["LoRA"], scale) for scale in SCALES}}


def train(args: Any, folder: Path, way: Way, more: Sequence[object]) -> dict[str, Any]:
    """A run's edgeft.json; what is there already is not made again, and what was broken off starts anew."""
    if not (folder / "edgeft.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        run([*EDGEFT, "train", way.method, "--base", args.base, "--data", args.data, "--eval-data", args.valid,
             "--max-steps", args.steps, "--out", folder, *way.options, *more])
    found: dict[str, Any] = json.loads((folder / "edgeft.json").read_text())
    return found


def task_loss(record: dict[str, Any]) -> float:
    """Nats per completion token on the task's own evaluation data."""
    return next(float(found["loss"]) for name, found in record["metrics"]["eval"].items() if name != "replay")


def near(loss: float, target: float) -> bool:
    """Whether two losses are equal for this table."""
    return abs(loss / target - 1) <= WITHIN


def reach(args: Any, place: Path, way: Way, target: float, rate: float) -> Path:
    """The folder of a run that stopped at the target; at half the learning rate where it fell too far in one step.

    `rate` is the learning rate to begin with; 0: the method's own.
    """
    for attempt in range(TRIES):
        folder = place.with_name(f"{place.name}-{attempt}")
        found = train(args, folder, way, ["--eval-every", way.every, "--stop-at-loss", target, "--lr", rate])
        if task_loss(found) >= target * (1 - WITHIN):
            break  # there, or too slow to get there: a lower rate would be slower still
        rate = found["metrics"]["learning_rate"] / 2
    return folder


def interpolate(args: Any, place: Path, target: float, rate: float) -> tuple[float, Path]:
    """Full tuning to 0.8 of the target, and back towards the base until the loss is the target: (weight, folder)."""
    low, high = 0.0, 1.0
    for attempt in range(TRIES):
        weight = round((low + high) / 2 if attempt else 0.75, 4)
        folder = place.with_name(f"{place.name}-{attempt}")
        found = train(args, folder, Way("full", ("--interpolate", str(weight))),
                      ["--eval-every", 1, "--stop-at-loss", 0.8 * target, "--lr", rate])
        loss = task_loss(found)
        if near(loss, target):
            break
        low, high = (weight, high) if loss > target else (low, weight)
    return weight, folder


def row(args: Any, folder: Path, target: float) -> dict[str, Any]:
    """What a run learned and forgot, measured in torch."""
    place = folder / "measured.json"
    if not place.exists():
        say(f"{folder.name}: probe and pairs")
        place.write_text(run([*EDGEFT, "eval", folder, "--data", args.valid, "--probe", args.probe, "--pairs",
                              args.pairs, "--json"]))
    found = json.loads(place.read_text())
    metrics = json.loads((folder / "edgeft.json").read_text())["metrics"]
    return {**short(found), "equal": near(found["loss"], target), "steps": metrics["steps"],
            "learning_rate": metrics["learning_rate"], "trained": metrics["trained_parameters"]}


def short(found: dict[str, Any]) -> dict[str, Any]:
    """The columns of the table out of `edgeft eval --json`."""
    return {"loss": found["loss"], "forgetting": found["forgetting"], "interval": found["interval"], "kl": found["kl"],
            "zorro": found["pairs"]["accuracy"], "zorro_base": found["pairs"]["base_accuracy"],
            "zorro_interval": found["pairs"]["interval"], "base_loss": found["probe_base_loss"]}


def by_scale(args: Any, work: Path, lora: Path, scale: float) -> dict[str, Any]:
    """The LoRA at a scale, on its bundle, by the runner."""
    bundle, place = work / "bundle", work / f"scale-{scale}.json"
    if not bundle.exists():
        say("LoRA: exporting")
        run([*EDGEFT, "export", lora, "--device", "cpu-x86_64", "--quant", "fp32", "--name", "tuned", "--out", bundle])
    if not place.exists():
        say(f"LoRA at {scale:g}: the bundle")
        place.write_text(run([*EDGEFT, "eval", bundle, "--adapter", f"tuned:{scale}", "--data", args.valid, "--probe",
                              args.probe, "--pairs", args.pairs, "--json"]))
    return short(json.loads(place.read_text()))


HEAD = ("loss valid", "forgetting", "95 %", "KL", "Zorro", "steps")


def describe(report: dict[str, Any]) -> str:
    """Both tables, and what they say."""
    rows, scales = report["rows"], report["scales"]
    base = rows["full"]
    text = [f"equal loss on valid: {report['target']:.3f} nats per token, from '{FURTHER}' on {report['further']:.3f}, "
            f"within {WITHIN:.0%} (* is not); the base: {base['base_loss']:.3f} on the probe, Zorro "
            f"{base['zorro_base']:.1%}", "",
            table(["", *HEAD], [_cells(name, found) for name, found in rows.items()]), "",
            "the LoRA by its scale, on the exported bundle, by the runner:",
            table(["scale", *HEAD[:-1]], [_cells(name, found)[:-1] for name, found in scales.items()]), "",
            *sentences(rows, scales)]
    return "\n".join(text)


def _cells(name: str, found: dict[str, Any]) -> list[str]:
    low, high = found["interval"]
    return [name, f"{found['loss']:.3f}{'' if found.get('equal', True) else '*'}", f"{found['forgetting']:+.3f}",
            f"[{low:+.3f}, {high:+.3f}]", f"{found['kl']:.3f}", f"{found['zorro']:.1%}", str(found.get("steps", ""))]


def sentences(rows: dict[str, Any], scales: dict[str, Any]) -> list[str]:
    """What the figures say, in five sentences made from them."""
    plain = rows[FURTHER]
    methods = {name: found for name, found in rows.items() if not name.startswith("full,")}
    limited = {name: found for name, found in rows.items() if name.startswith("full,") and name != FURTHER
              and found["equal"]}
    least, most = _ends(methods)
    whole, half = scales["1.0"], scales["0.5"]
    said = [f"At equal loss {most} forgets most ({_said(methods[most])}) and {least} least ({_said(methods[least])}); "
            f"their intervals {_apart(methods[most], methods[least])}."]
    if limited:
        best, worst = _ends(limited)
        said += [f"Of the limits on full tuning '{best}' keeps most: {_said(limited[best])} against {_said(plain)} "
                 f"without, and the intervals {_apart(plain, limited[best])}.",
                 f"'{worst}' keeps least: {_said(limited[worst])}."]
    grammar = {name: found["zorro"] - found["zorro_base"] for name, found in rows.items()}
    lost = min(grammar, key=lambda name: grammar[name])
    said += [f"Grammar fares worst with '{lost}': {grammar[lost]:+.1%} on the base's {plain['zorro_base']:.1%}.",
             f"At half its scale the LoRA forgets {half['forgetting']:+.3f} instead of {whole['forgetting']:+.3f}, for "
             f"a loss of {half['loss']:.3f} instead of {whole['loss']:.3f}; switched off it forgets nothing."]
    return said


def _ends(rows: dict[str, Any]) -> tuple[str, str]:
    """The names of the rows that forgot least and most."""
    order = sorted(rows, key=lambda name: rows[name]["forgetting"])
    return order[0], order[-1]


def _said(found: dict[str, Any]) -> str:
    return f"{found['forgetting']:+.3f} nats per token"


def _apart(one: dict[str, Any], other: dict[str, Any]) -> str:
    overlap = one["interval"][0] <= other["interval"][1] and other["interval"][0] <= one["interval"][1]
    return "overlap" if overlap else "do not overlap"


def draw(path: Path, report: dict[str, Any]) -> None:
    """The table as bars."""
    from edgeft.run.chart import write_chart

    def bars(rows: dict[str, Any], value: Callable[[dict[str, Any]], float]) -> list[tuple[str, float]]:
        return [(name, value(found)) for name, found in rows.items()]

    rows, scales = report["rows"], {f"LoRA at {name}": found for name, found in report["scales"].items()}
    write_chart(path, "What tuning makes a model forget", f"at a loss of {report['target']:.2f} on the task, with "
                f"limits at {report['further']:.2f}; bundles by the runner", [
                    ("forgetting, nats per token on source text", bars(rows, lambda found: found["forgetting"])),
                    ("grammar pairs wrong, %", bars(rows, lambda found: 100 * (1 - found["zorro"]))),
                    ("LoRA by its scale: forgetting", bars(scales, lambda found: found["forgetting"])),
                    ("LoRA by its scale: loss on the task", bars(scales, lambda found: found["loss"]))], decimals=2)


if __name__ == "__main__":
    start(main)
