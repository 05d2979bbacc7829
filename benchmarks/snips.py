"""Spoken requests to JSON (SNIPS): a LoRA trained on the device's int4 grid, measured from the bundle.

    python benchmarks/snips.py

Trains on all of snips/train, exports for cpu-x86_64, and asks the bundle the test lines by the runner, greedily:

  valid JSON     share of answers that parse to an object with an intent and slots
  intent         share of lines with the right intent
  slot F1        micro F1 over (slot, value) pairs, both exactly right

`base` is the same bundle with its adapter off.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from common import (
    EDGEFT,
    SHARED,
    STORIES,
    arguments,
    child,
    machine,
    need,
    read_lines,
    run,
    say,
    start,
    table,
    workspace,
)

SNIPS = SHARED / "data" / "snips"
BATCH = 16
# with the head: stories3m never saw its end token, and a frozen head cannot tell it from 171 others
LAYERS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,lm_head"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", type=Path, default=STORIES)
    parser.add_argument("--data", type=Path, default=SNIPS / "train.jsonl")
    parser.add_argument("--test", type=Path, default=SNIPS / "test.jsonl")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--quant", default="int4", choices=["int4", "fp32"])
    args = parser.parse_args()
    if args.child:
        print(json.dumps(ask(*args.child)))
        return
    need(args.base, args.data, args.test)
    with workspace(args) as work:
        say("training")
        grid = ["--device", "cpu-x86_64"] if args.quant == "int4" else []
        record = json.loads(run([*EDGEFT, "train", "lora", "--base", args.base, "--data", args.data, "--out",
                                 work / "run", "--epochs", args.epochs, "--r", args.rank, "--lora-alpha",
                                 2 * args.rank, "--lr", args.lr, "--holdout", 0, "--json", "--target-modules", LAYERS,
                                 *grid]))
        say("exporting")
        run([*EDGEFT, "export", work / "run", "--device", "cpu-x86_64", "--quant", args.quant, "--name", "snips",
             "--out", work / "bundle"])
        rows = {}
        for name in ("snips", "none"):
            say(f"asking the bundle, adapter {name}")
            rows["adapter" if name == "snips" else "base"] = child(__file__, work / "bundle", args.test, name)
    report = {"benchmark": "snips", "machine": machine(), "quant": args.quant, "epochs": args.epochs,
              "train_seconds": record["metrics"]["seconds"], "rows": rows}
    print(json.dumps(report, indent=2) if args.json else describe(report))


def describe(report: dict[str, Any]) -> str:
    """The table."""
    rows = [(name, row["lines"], f"{row['valid']:.1%}", f"{row['intent']:.1%}", f"{row['slot_f1']:.1%}",
             f"{row['exact']:.1%}", f"{row['lines'] / row['seconds']:.1f}") for name, row in report["rows"].items()]
    return "\n".join([f"{report['quant']} bundle, LoRA trained {report['epochs']:g} epochs in "
                      f"{report['train_seconds']:.0f} s", "",
                      table(["", "lines", "valid JSON", "intent", "slot F1", "exact", "lines/s"], rows)])


def ask(bundle: str, test: str, adapter: str) -> dict[str, Any]:
    """The bundle's answers to every test line, scored."""
    from edgeft.run import load

    model, lines = load(bundle), sorted(read_lines(Path(test)), key=lambda line: len(line["prompt"]))
    used: dict[str, float] = {} if adapter == "none" else {adapter: 1.0}
    longest = 96
    answers: list[str] = []
    start = time.perf_counter()
    for at in range(0, len(lines), BATCH):
        part = [line["prompt"] if used else line["prompt"] + "\n" for line in lines[at : at + BATCH]]
        answers += model.batch(part, adapters=[used] * len(part), max_tokens=longest, temperature=0)
    seconds = time.perf_counter() - start
    valid = right = exact = hits = found = wanted = 0
    for line, answer in zip(lines, answers, strict=True):
        gold, made = json.loads(line["completion"]), _parse(answer)
        pairs = set(gold["slots"].items())
        mine = set(made["slots"].items()) if made else set()
        valid += made is not None
        right += bool(made) and made["intent"] == gold["intent"]
        exact += made == gold
        hits, found, wanted = hits + len(pairs & mine), found + len(mine), wanted + len(pairs)
    return {"lines": len(lines), "valid": valid / len(lines), "intent": right / len(lines),
            "exact": exact / len(lines), "slot_f1": 2 * hits / max(1, found + wanted), "seconds": seconds}


def _parse(text: str) -> dict[str, Any] | None:
    """The answer as an object with an intent and flat slots of text; None if it is anything else."""
    try:
        made = json.loads(text.strip())
    except ValueError:
        return None
    if not (isinstance(made, dict) and isinstance(made.get("intent"), str) and isinstance(made.get("slots"), dict)
            and all(isinstance(value, str) for value in made["slots"].values())):
        return None
    return made


if __name__ == "__main__":
    start(main)
