"""What each integer grid costs in quality, and what it gives in size and speed, on stories3m.

    python benchmarks/grids.py
    python benchmarks/grids.py --block 128 --rounding rtn --steps 4 --lines 20 --repeats 1     to see that it works

For float and for every grid: a LoRA is trained on e2e by `edgeft train --device` on that very grid (--steps steps of
16), exported beside the base by `edgeft export`, and the bundle is asked by the runner, in a process of its own:

  probe     nats per token on the first --lines lines of tinystories/probe, bare base: what it knew before any training
  e2e/test  nats per completion token with the adapter: what is left after training on the grid
  MiB       the graph's weights on disk
  prefill, decode   tokens per second by `edgeft bench`'s own functions, bare base, --tokens + --tokens, 2 threads

Losses are of bundles as shipped: activations are rounded to int8 too. `cost` is against float.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import E2E, SHARED, STORIES, arguments, child, fail, machine, need, read_lines, say, start, table, workspace

DEVICE = Path(__file__).resolve().parents[1] / "devices" / "cpu-x86_64.toml"
PROBE = SHARED / "data" / "tinystories" / "probe.jsonl"


@dataclass(frozen=True)
class Grid:
    """One way to store weights."""

    quant: str
    block: int = 32
    symmetric: bool = True
    rounding: str = "rtn"

    @property
    def name(self) -> str:
        """For the table, and as a file's name."""
        shape = "" if self.symmetric else " asymmetric"
        return self.quant if self.quant == "fp32" else f"{self.quant} {self.block}{shape} {self.rounding}"

    def device(self, folder: Path) -> Path:
        """The x86 device file with this grid instead of its own."""
        text = DEVICE.read_text()
        for key, value in (("quant", f'"{self.quant}"'), ("block", self.block)):
            text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
        text += f'symmetric = {str(self.symmetric).lower()}\nrounding = "{self.rounding}"\n'
        path = folder / f"{self.name.replace(' ', '-')}.toml"
        path.write_text(text)
        return path


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", type=Path, default=STORIES)
    parser.add_argument("--data", type=Path, default=E2E / "train.jsonl")
    parser.add_argument("--test", type=Path, default=E2E / "test.jsonl")
    parser.add_argument("--probe", type=Path, default=PROBE)
    parser.add_argument("--quant", action="append", choices=["int4", "int8"], help="repeat for more (default: int4)")
    parser.add_argument("--block", type=int, action="append", choices=[32, 64, 128], help="repeat for more; all")
    parser.add_argument("--rounding", action="append", choices=["rtn", "mse"], help="repeat for more; all")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.child:
        verb, *words = args.child
        print(json.dumps({"build": build, "ask": ask}[verb](*words)))
        return
    need(args.base, args.data, args.test, args.probe)
    ways = itertools.product(args.quant or ["int4"], args.block or [32, 64, 128], [True, False],
                             args.rounding or ["rtn", "mse"])
    grids = [Grid("fp32"), *(Grid(*way) for way in ways)]
    with workspace(args) as work:
        report = measure(args, grids, work)
    print(json.dumps(report, indent=2) if args.json else describe(report))


def measure(args: Any, grids: list[Grid], work: Path) -> dict[str, Any]:
    """Train and export all in one process, which loads torch once; then ask each bundle in its own."""
    texts = {name: _first(path, args.lines, work / f"{name}.jsonl")
             for name, path in (("probe", args.probe), ("test", args.test))}
    say(f"training and exporting {len(grids)} times")
    child(__file__, "build", args.base, args.data, work, args.steps, json.dumps([asdict(grid) for grid in grids]))
    rows = []
    for grid in grids:
        say(f"asking {grid.name}")
        rows.append({**asdict(grid), "name": grid.name,
                     **child(__file__, "ask", work / "bundles" / grid.name, texts["probe"], texts["test"], args.tokens,
                             args.repeats)})
    for row in rows:
        row |= {f"{part}_cost": row[part] - rows[0][part] for part in ("probe", "test")}
    return {"benchmark": "grids", "machine": machine(), "rows": rows,
            "setup": {name: str(value) for name, value in vars(args).items() if name not in ("json", "work", "child")}}


def build(base: str, data: str, folder: str, steps: str, grids: str) -> dict[str, Any]:
    """A run and a bundle for every grid, by the command line's own code."""
    work = Path(folder)
    (work / "bundles").mkdir()
    for fields in json.loads(grids):
        grid = Grid(**fields)
        device, run = grid.device(work), work / f"run-{grid.name}"
        on_grid = [] if grid.quant == "fp32" else ["--device", device]
        _edgeft("train", "lora", "--base", base, "--data", data, "--holdout", 0, "--out", run, "--max-steps", steps,
                *on_grid)
        _edgeft("export", run, "--device", device, "--out", work / "bundles" / grid.name, "--name", "tuned")
    return {}


def _edgeft(*words: object) -> None:
    """The command line in this process, its output kept apart from ours."""
    import contextlib
    import io

    from edgeft.cli import main

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main([str(word) for word in words])
    except SystemExit as ended:
        if ended.code:
            fail(f"edgeft {' '.join(map(str, words))}\n{said.getvalue()}")


def ask(bundle: str, probe: str, test: str, tokens: str, repeats: str) -> dict[str, float]:
    """Losses of one bundle, then its speed."""
    from edgeft.run.bench import bench
    from edgeft.run.evaluate import evaluate

    folder = Path(bundle)
    known, task = evaluate(folder, Path(probe), None, {}), evaluate(folder, Path(test), None, None)
    speed = bench(folder, {}, threads=2, prompt_tokens=int(tokens), new_tokens=int(tokens), repeats=int(repeats),
                  batch=0)
    return {"probe": known["loss"], "probe_tokens": known["tokens"], "test": task["loss"],
            "test_tokens": task["tokens"], "mib": (folder / "model.onnx.data").stat().st_size / 2**20,
            "prefill": speed["prefill"], "decode": speed["decode"]}


def _first(path: Path, lines: int, out: Path) -> Path:
    out.write_text("".join(json.dumps(record) + "\n" for record in read_lines(path)[:lines]))
    return out


def describe(report: dict[str, Any]) -> str:
    """The table."""
    rows = [(row["name"], f"{row['probe']:.4f}", f"{row['probe_cost']:+.4f}", f"{row['test']:.4f}",
             f"{row['test_cost']:+.4f}", f"{row['mib']:.2f}", f"{row['prefill']:,.0f}", f"{row['decode']:,.0f}")
            for row in report["rows"]]
    first = report["rows"][0]
    return "\n".join([
        f"stories3m: probe of {first['probe_tokens']:,} tokens by the bare base, e2e/test of {first['test_tokens']:,} "
        f"by a LoRA of {report['setup']['steps']} steps trained on the same grid", "",
        table(["grid", "probe", "cost", "e2e/test", "cost", "MiB", "prefill tok/s", "decode tok/s"], rows)])


if __name__ == "__main__":
    start(main)
