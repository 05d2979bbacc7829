"""What each kind of adapter costs at run time, on one bundle: a LoRA, factors, a soft prompt, and all in one batch.

    python benchmarks/kinds.py
    python benchmarks/kinds.py --shape tiny --repeats 1    to see that it works

Makes a model with ../shared/bench/make_model.py and exports it; the adapters hold random numbers, since speed does not
depend on what they say. Then, all kinds in turn, in one process each time:

  first token    from the request to the first logits after --prompt-tokens tokens; `computed` is the same with as many
                 more tokens of text as the soft prompt has
  decode         tokens per second of one request; for the batch, of all its rows together

`scaled graph` is a request without an adapter on the graph with `scale` slots: what those cost who does not use them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import EDGEFT, SHARED, arguments, child, machine, medians, need, run, say, start, table, workspace

SOFT = 20  # tokens of the soft prompt


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--maker", type=Path, default=SHARED / "bench" / "make_model.py")
    parser.add_argument("--shape", default="135m", choices=["tiny", "135m", "360m"])
    parser.add_argument("--quant", default="int4", choices=["int4", "int8", "fp32"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(*args.child)))
        return
    need(args.maker)
    with workspace(args) as work:
        say(f"making and exporting the {args.shape} model")
        run([sys.executable, args.maker, "--shape", args.shape, "--out", work / "model", "--lora", work / "lora",
             "--rank", args.rank])
        run([*EDGEFT, "export", work / "lora", "--base", work / "model", "--device", "cpu-x86_64", "--quant",
             args.quant, "--name", "lora", "--out", work / "bundle"])
        rows: dict[str, list[dict[str, float]]] = {}
        for turn in range(args.repeats):
            say(f"turn {turn + 1} of {args.repeats}")
            for name, found in child(__file__, work / "bundle", args.prompt_tokens, args.new_tokens).items():
                rows.setdefault(name, []).append(found)
    report = {"benchmark": "kinds", "machine": machine(), "shape": args.shape, "quant": args.quant,
              "rows": {name: medians(found) for name, found in rows.items()}}
    print(json.dumps(report, indent=2) if args.json else describe(report))


def describe(report: dict[str, Any]) -> str:
    """The table."""
    rows = [(name, f"{row['first_ms']:.1f}", f"{row['decode']:.1f}") for name, row in report["rows"].items()]
    return "\n".join([f"{report['shape']}, {report['quant']}, medians", "",
                      table(["request", "first token ms", "decode tok/s"], rows)])


def measure(bundle: str, prompt: str, new: str) -> dict[str, dict[str, float]]:
    """Every kind once, after a warm-up of each."""
    from edgeft.run import load

    model, length = load(bundle), int(prompt)
    _write_others(model, Path(bundle).parent)
    for name in ("ia3", "soft"):
        model.load_adapter(name, Path(bundle).parent / f"{name}.safetensors")
    kinds: dict[str, tuple[list[dict[str, float]], int]] = {
        "no adapter": ([{}], length), "LoRA": ([{"lora": 1.0}], length),
        f"soft prompt of {SOFT}, copied": ([{"soft": 1.0}], length),
        f"{SOFT} tokens more, computed": ([{}], length + SOFT),
        "IA3": ([{"ia3": 1.0}], length), "no adapter, scaled graph": ([{}], length),
        "batch: LoRA, LoRA 0.7, soft prompt, IA3, none": (
            [{"lora": 1.0}, {"lora": 0.7}, {"soft": 1.0}, {"ia3": 1.0}, {}], length)}
    found = {}
    for name, (rows, tokens) in kinds.items():
        _one(model, rows, tokens, 4)
        first, decode = _one(model, rows, tokens, int(new))
        found[name] = {"first_ms": 1000 * first, "decode": decode}
    return found


def _one(model: Any, rows: list[dict[str, float]], length: int, new: int) -> tuple[float, float]:
    """Seconds to the first logits, and tokens per second of all rows after it."""
    ids = [[3 + index % (model.graphs.vocabulary - 3) for index in range(length)]] * len(rows)
    start = time.perf_counter()
    lanes = model.lanes(rows, length + new)
    tokens = lanes.prefill(ids).argmax(-1)
    middle = time.perf_counter()
    for _ in range(new - 1):
        tokens = lanes.step(tokens.tolist()).argmax(-1)
    seconds = time.perf_counter() - middle
    lanes.close()
    return middle - start, len(rows) * (new - 1) / seconds


def _write_others(model: Any, folder: Path) -> None:
    """Random factors on every layer, and a random soft prompt, as adapter files of this bundle."""
    from edgeft.contract.tensors import write_tensors

    rng, header = np.random.default_rng(0), {"base_fingerprint": model.bundle.fingerprint, "prompt": "raw"}
    factors = {f"{module}.scale": rng.normal(1, 0.1, out).astype(np.float32) for slot in model.bundle.linears
               for module, out in zip(slot.modules, slot.out_features, strict=True) if module != "lm_head"}
    prefix = {f"prefix.{layer}.{part}": rng.normal(0, 1, (heads, SOFT, size)).astype(np.float32)
              for layer, (heads, size) in enumerate(model.bundle.prefix_layers) for part in ("key", "value")}
    write_tensors(folder / "ia3.safetensors", factors, header)
    write_tensors(folder / "soft.safetensors", prefix, header)


if __name__ == "__main__":
    start(main)
