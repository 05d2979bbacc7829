"""What the export of a 135M model to int4 takes, and how fast the bundle answers with and without an adapter.

    python benchmarks/export_size.py
    python benchmarks/export_size.py --shape tiny --repeats 1    to see that it works

Makes the model and a LoRA of rank 16 on every linear layer with ../shared/bench/make_model.py (random weights: speed
and memory do not depend on what they say), then in turn, each in a process of its own:

  export   `edgeft export MODEL --device cpu-x86_64 --quant int4`, and the same of the LoRA folder with --base
           (verification against torch included, as it is part of export)
  bench    `edgeft bench BUNDLE --json`, without adapters and with the LoRA

Wall time is of the whole command. The peak is of the command and all processes that it starts, together, sampled ten
times a second; `largest process` is the kernel's own figure for the largest of them. --cores keeps every process on
that many cores.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from common import (
    EDGEFT,
    SHARED,
    arguments,
    machine,
    measured,
    medians,
    need,
    run,
    say,
    start,
    table,
    verdict,
    workspace,
)

TARGET_SECONDS, TARGET_MIB = 30.0, 2.5e9 / 2**20  # 2.5 GB


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--maker", type=Path, default=SHARED / "bench" / "make_model.py")
    parser.add_argument("--shape", default="135m", choices=["tiny", "135m", "360m", "1b"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", default="cpu-x86_64")
    parser.add_argument("--quant", default="int4", choices=["int4", "int8", "fp32"])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    args = parser.parse_args()
    need(args.maker)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])  # every process started here inherits it
    with workspace(args) as work:
        report = measure(args, work)
    print(json.dumps(report, indent=2) if args.json else describe(report))


def measure(args: Any, work: Path) -> dict[str, Any]:
    """Make the model, export twice over in turn, then bench in turn."""
    model, lora = work / "model", work / "lora"
    say(f"making the {args.shape} model")
    run([sys.executable, args.maker, "--shape", args.shape, "--out", model, "--lora", lora, "--rank", args.rank])
    sources = {"model": [model], "model + LoRA beside": [lora, "--base", model, "--name", "lora"]}
    exports: dict[str, list[dict[str, float]]] = {name: [] for name in sources}
    bundles: dict[str, Path] = {}
    for repeat in range(args.repeats):
        for name, source in sources.items():
            bundle = bundles[name] = work / f"bundle-{list(sources).index(name)}"
            shutil.rmtree(bundle, ignore_errors=True)
            found = measured([*EDGEFT, "export", *source, "--device", args.device, "--quant", args.quant,
                              "--out", bundle])
            found["bundle_mib"] = sum(one.stat().st_size for one in bundle.rglob("*") if one.is_file()) / 2**20
            exports[name].append(found)
            say(f"export {repeat + 1}/{args.repeats} of {name}: {found['seconds']:.1f} s, {found['peak_mib']:,.0f} MiB")
    plain, beside = bundles.values()
    shapes = {"base alone": (plain, "none"), "bundle with LoRA, off": (beside, "none"),
              "bundle with LoRA, on": (beside, "lora")}
    benches: dict[str, list[dict[str, Any]]] = {name: [] for name in shapes}
    for repeat in range(args.repeats):
        for name, (bundle, adapter) in shapes.items():
            say(f"bench {repeat + 1}/{args.repeats}: {name}")
            benches[name].append(json.loads(run([
                *EDGEFT, "bench", bundle, "--adapter", adapter, "--prompt-tokens", args.prompt_tokens,
                "--new-tokens", args.new_tokens, "--json"])))
    return {"benchmark": "export_size", "machine": machine(),
            "setup": {"shape": args.shape, "rank": args.rank, "device": args.device, "quant": args.quant,
                      "prompt_tokens": args.prompt_tokens, "new_tokens": args.new_tokens, "repeats": args.repeats},
            "targets": {"seconds": TARGET_SECONDS, "peak_mib": TARGET_MIB},
            "export": {name: medians(found) for name, found in exports.items()},
            "bench": {name: medians(found) for name, found in benches.items()}, "runs": {**exports, **benches}}


def describe(report: dict[str, Any]) -> str:
    """The tables."""
    setup, target = report["setup"], report["targets"]
    exports = [(name, f"{row['seconds']:.1f}", verdict(row["seconds"] <= target["seconds"]),
                f"{row['peak_mib']:,.0f}", verdict(row["peak_mib"] <= target["peak_mib"]),
                f"{row['largest_mib']:,.0f}", f"{row['bundle_mib']:.1f}")
               for name, row in report["export"].items()]
    benches = [(name, f"{row['prefill']:,.0f}", f"{row['decode']:,.1f}", f"{row['first_token_ms']:.0f}",
                f"{row['load_ms']:,.0f}", f"{row['peak_mib']:,.0f}") for name, row in report["bench"].items()]
    threads = next(iter(report["bench"].values()))["threads"]
    return "\n".join([
        f"{setup['shape']} to {setup['quant']} for {setup['device']}, LoRA rank {setup['rank']} on every linear layer, "
        f"{report['machine']['cores']} cores, medians of {setup['repeats']} in turn", "",
        table(["export", "seconds", f"<= {target['seconds']:g} s", "peak MiB", f"<= {target['peak_mib']:,.0f} MiB",
               "largest process", "bundle MiB"], exports), "",
        table([f"bench, {setup['prompt_tokens']} + {setup['new_tokens']} tokens, {threads:.0f} threads",
               "prefill tok/s", "decode tok/s", "first token ms", "load ms", "peak MiB"], benches)])


if __name__ == "__main__":
    start(main)
