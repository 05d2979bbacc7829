"""Train what you ship: one adapter four ways on int4, and how much of what merging and quantizing loses comes back.

    python benchmarks/same_grid.py                         stories3m, e2e, three seeds, one epoch each
    python benchmarks/same_grid.py --steps 40 --lines 60   a short try

For each seed a LoRA is trained by `edgeft train` on float, with its own defaults, and `edgeft eval --compare` does the
rest: it trains the twin on the device's grid from the run's record, exports the bundles, and measures all four ways
with the runner on the first --lines lines of e2e/test:

  float merged                              fp32, the adapter folded into the weights
  merged, then quantized                    the same, rounded to the device's grid
  quantized base, adapter trained on float  the base on the grid, that adapter beside it in float
  trained on the grid                       the same with the twin's adapter

Target: training on the grid recovers at least 80 % of what merge-then-quantize loses, (loss 2 - loss 4) / (loss 2 -
loss 1), by the median over seeds. With --work FOLDER runs and comparisons stay there, and what a call finds there is
not made again.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from common import E2E, EDGEFT, STORIES, arguments, machine, need, run, say, start, table, verdict, workspace

TARGET = 0.8


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", type=Path, default=STORIES)
    parser.add_argument("--data", type=Path, default=E2E / "train.jsonl")
    parser.add_argument("--test", type=Path, default=E2E / "test.jsonl")
    parser.add_argument("--lines", type=int, default=500, help="of --test that are measured")
    parser.add_argument("--device", default="cpu-x86_64", help="whose grid: a name or a TOML file")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="of each training; 0: one epoch")
    args = parser.parse_args()
    need(args.base, args.data, args.test)
    with workspace(args) as work:
        test = work / "test.jsonl"
        test.write_text("".join(args.test.read_text(encoding="utf-8").splitlines(keepends=True)[: args.lines]))
        found = [seed_of(number, test, args, work) for number in range(args.seeds)]
    report = {"benchmark": "same_grid", "machine": machine(), "steps": args.steps, "lines": args.lines,
              "recovered": statistics.median(shares(found)), "target": TARGET, "seeds": found}
    print(json.dumps(report, indent=2) if args.json else describe(report))


def seed_of(seed: int, test: Path, args: Any, work: Path) -> dict[str, Any]:
    """Train and compare one seed, or read what an earlier call left."""
    place = work / f"{args.method}-{args.steps or 'epoch'}-seed-{seed}"
    result = work / f"{place.name}-{Path(args.device).stem}-{args.lines}.json"
    if not result.is_file():
        if not (place / "edgeft.json").is_file():
            say(f"seed {seed}: training on float")
            run([*EDGEFT, "train", args.method, "--base", args.base, "--data", args.data, "--seed", str(seed),
                 "--max-steps", str(args.steps), "--out", place, *(["--resume"] if place.exists() else [])])
        say(f"seed {seed}: the twin on the grid, four bundles, and their losses")
        run([*EDGEFT, "eval", place, "--compare", "--device", args.device, "--data", test, "--answers", "0",
             "--out", result, "--work", work / "twins"])
    comparison: dict[str, Any] = json.loads(result.read_text())
    return {"seed": seed, **comparison}


def shares(found: list[dict[str, Any]]) -> list[float]:
    """Of each seed; where nothing is lost, nothing has to be recovered."""
    return [1.0 if one["recovered"] is None else one["recovered"] for one in found]


def describe(report: dict[str, Any]) -> str:
    """The losses of every seed and their medians, with size and speed."""
    seeds = report["seeds"]
    rows = []
    for index, row in enumerate(seeds[0]["rows"]):
        same = [one["rows"][index] for one in seeds]
        rows.append([row["way"], *(f"{one['loss']:.4f}" for one in same),
                     f"{statistics.median(one['loss'] for one in same):.4f}", f"{row['size_mib']:.2f}",
                     f"{statistics.median(one['decode_tokens_per_s'] for one in same):,.0f}"])
    each = shares(seeds)
    rows.append(["recovered", *(f"{share:.0%}" for share in each), f"{report['recovered']:.0%}", "", ""])
    first = seeds[0]
    return "\n".join([
        f"{first['device']}, {first['quant']}, block {first['block']}: nats per completion token over "
        f"{first['rows'][0]['tokens']:,} tokens of the test",
        table(["", *(f"seed {one['seed']}" for one in seeds), "median", "MiB", "tokens/s"], rows),
        f"training on the grid recovers {report['recovered']:.0%} of what merging and then quantizing loses "
        f"(target >= {report['target']:.0%}): {verdict(report['recovered'] >= report['target'])}"])


if __name__ == "__main__":
    start(main)
