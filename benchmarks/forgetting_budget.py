"""`edgeft export --forgetting-budget`: the scale that it finds, on text that it has not seen.

    python benchmarks/forgetting_budget.py                       stories3m, e2e, a LoRA of one epoch
    python benchmarks/forgetting_budget.py --steps 40 --budget 0.2

The lines of tinystories/probe are dealt in two halves, every other line to each. For each --budget the run is exported
with the scale fitted on the first half, and the bundle's forgetting (nats per token, tuned minus base, by the runner)
is measured on the second, with the loss on e2e/test. Targets: within 5 % of the budget on the held-out half, and an
impossible budget (1e-5 nats, in fp32: a base damaged by rounding may even gain by a little of an adapter) refused with
the figures and nothing written.

With --work FOLDER run and bundles stay there, and what a call finds there is not made again. Ends with exit code 1 when
the impossible budget is not refused, or something was written.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import E2E, EDGEFT, SHARED, STORIES, arguments, machine, need, run, say, start, table, verdict, workspace

NEAR = 0.05
BUDGETS = (0.1, 0.3, 1.0)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", type=Path, default=STORIES)
    parser.add_argument("--data", type=Path, default=E2E / "train.jsonl")
    parser.add_argument("--test", type=Path, default=E2E / "test.jsonl")
    parser.add_argument("--probe", type=Path, default=SHARED / "data" / "tinystories" / "probe.jsonl")
    parser.add_argument("--device", default="cpu-x86_64")
    parser.add_argument("--quant", help="(default: the device's)")
    parser.add_argument("--budget", type=float, action="append", help=f"repeat for more (default: {BUDGETS})")
    parser.add_argument("--steps", type=int, default=0, help="of the training; 0: one epoch")
    args = parser.parse_args()
    need(args.base, args.data, args.test, args.probe)
    with workspace(args) as work:
        for half in (0, 1):
            lines = args.probe.read_text(encoding="utf-8").splitlines(keepends=True)[half::2]
            (work / f"probe-{half}.jsonl").write_text("".join(lines))
        tuned = work / f"lora-{args.steps or 'epoch'}"
        if not (tuned / "edgeft.json").is_file():
            say("training")
            run([*EDGEFT, "train", "lora", "--base", args.base, "--data", args.data, "--max-steps", str(args.steps),
                 "--out", tuned, *(["--resume"] if tuned.exists() else [])])
        rows = [limited(tuned, budget, args, work) for budget in args.budget or BUDGETS]
        refusal = impossible(tuned, args, work)
    report = {"benchmark": "forgetting_budget", "machine": machine(), "steps": args.steps, "rows": rows,
              "refused": refusal}
    print(json.dumps(report, indent=2) if args.json else describe(report))
    sys.exit(0 if refused(report["refused"]) else 1)


def limited(tuned: Path, budget: float, args: Any, work: Path) -> dict[str, Any]:
    """Fit on one half, measure on the other."""
    bundle = work / f"{tuned.name}-{args.quant or 'device'}-{budget:g}"
    if not bundle.exists():
        say(f"fitting to {budget:g}")
        run([*EDGEFT, "export", tuned, "--out", bundle, "--name", "tuned", *words(budget, args, work)])
    entry = json.loads((bundle / "bundle.json").read_text())["adapters"]["tuned"]
    found = json.loads(run([*EDGEFT, "eval", bundle, "--data", args.test, "--probe", work / "probe-1.jsonl", "--json"]))
    known = dict(entry["forgetting"]["by_scale"])
    return {"budget": budget, "scale": entry["scale"], "fitted": entry["forgetting"]["forgetting"],
            "held_out": found["forgetting"], "interval": found.get("interval"),
            "off": found["forgetting"] / budget - 1, "loss": found["loss"], "at_scale_1": known[1.0],
            "measurements": len(known), "tokens": entry["forgetting"]["tokens"]}


def words(budget: float, args: Any, work: Path) -> list[str]:
    """What every export is told."""
    return ["--device", args.device, *(["--quant", args.quant] if args.quant else []), "--forgetting-budget",
            f"{budget:g}", "--probe", str(work / "probe-0.jsonl"), "--data", str(args.test)]


def impossible(tuned: Path, args: Any, work: Path) -> dict[str, Any]:
    """A budget that no scale keeps: what is said, and whether anything was left."""
    out = work / "impossible"
    shutil.rmtree(out, ignore_errors=True)  # of an earlier call that was not refused
    command = [*EDGEFT, "export", str(tuned), "--out", str(out), *words(1e-5, args, work), "--quant", "fp32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"exit_code": done.returncode, "written": out.exists(), "said": done.stderr.partition("edgeft: ")[2]}


def refused(found: dict[str, Any]) -> bool:
    """Whether the impossible was refused with figures, and nothing written."""
    return found["exit_code"] == 1 and not found["written"] and "scale 0.05: forgets" in found["said"]


def near(rows: list[dict[str, Any]]) -> bool:
    """Whether every budget was met on the lines that were not seen."""
    return all(abs(row["off"]) <= NEAR for row in rows if row["scale"] < 1)


def describe(report: dict[str, Any]) -> str:
    """The rows, and what was said of the impossible."""
    rows = [[f"{row['budget']:g}", f"{row['scale']:.4f}", f"{row['fitted']:+.4f}", f"{row['held_out']:+.4f}",
             "{:+.3f}..{:+.3f}".format(*row["interval"]) if row["interval"] else "",
             f"{row['off']:+.1%}" if row["scale"] < 1 else "-", f"{row['loss']:.4f}", row["measurements"]]
            for row in report["rows"]]
    first = report["rows"][0]
    header = ["budget", "scale", "fitted half", "held-out half", "95 %", "off", "e2e/test loss", "measured scales"]
    return "\n".join([
        table(header, rows),
        f"forgetting at scale 1: {first['at_scale_1']:+.4f} nats per token; fitted on {first['tokens']:,} tokens",
        "an impossible budget, exit code {exit_code}:\n{said}".format(**report["refused"]).rstrip(),
        f"within {NEAR:.0%} of the budget on held-out lines: {verdict(near(report['rows']))}; the impossible refused: "
        f"{verdict(refused(report['refused']))}"])


if __name__ == "__main__":
    start(main)
