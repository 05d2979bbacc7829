"""What a packed base (QLoRA) saves and costs: planned for large models, measured on a small one.

    python benchmarks/qlora.py
    python benchmarks/qlora.py --shape tiny --steps 2 --repeats 1       to see that it works
    python benchmarks/qlora.py --plan-only

plan      `edgeft.train.memory_plan` for models of known shapes on an int4 grid of block 64, a LoRA of rank 16 on every
          linear layer, passes of 2,048 tokens: computed from the shapes, nothing is loaded. The total is a bound.
measured  a model of --shape with random weights, the same LoRA, --steps steps of 2 rows of 64 tokens with gradient
          checkpointing, in a process of its own each: the base as floats, on the grid as floats, and packed. The peak
          is of the steps alone (reset after loading): resident memory here, allocated memory on a GPU.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from common import SHARED, arguments, child, machine, medians, need, peak_mib, run, say, start, table, workspace

CARD = 24.0  # GiB
WAYS = {"floats": "float32", "grid": "on the grid, as floats", "packed": "on the grid, packed"}
SHAPES: dict[str, dict[str, int]] = {
    "1B (Llama 3.2)": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                       "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tied": 1},
    "3B (Llama 3.2)": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
                       "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 128256, "tied": 1},
    "7B (Llama 2, Mistral's width)": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                                      "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000},
    "8B (Llama 3.1)": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                       "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "13B (Llama 2)": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
                      "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32000},
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--maker", type=Path, default=SHARED / "bench" / "make_model.py")
    parser.add_argument("--shape", default="135m", choices=["tiny", "135m", "360m", "1b"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plan-only", action="store_true")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(train(*args.child)))
        return
    need(args.maker)
    report: dict[str, Any] = {"benchmark": "qlora", "machine": machine(), "plan": plans(), "rows": {}}
    if not args.plan_only:
        with workspace(args) as work:
            report["rows"] = measure(args, work)
    print(json.dumps(report, indent=2) if args.json else describe(report, args.shape))


def plans() -> dict[str, dict[str, float]]:
    """GiB by purpose for every shape."""
    from transformers import LlamaConfig

    from edgeft.contract.grid import Quant
    from edgeft.train.memory_plan import plan

    found = {}
    for name, shape in SHAPES.items():
        say(f"planning {name}")
        sizes = {key: size for key, size in shape.items() if key != "tied"}
        config = LlamaConfig(**sizes, tie_word_embeddings="tied" in shape)
        parts = plan(config, Quant("int4", 64))
        found[name] = {**{part: size / 2**30 for part, size in vars(parts).items()}, "total": parts.total / 2**30}
    return found


def measure(args: Any, work: Path) -> dict[str, dict[str, float]]:
    """Medians of the ways in turn."""
    model = work / "model"
    run([sys.executable, args.maker, "--shape", args.shape, "--out", model])
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for repeat in range(args.repeats):
        for way, found in rows.items():
            say(f"{repeat + 1}/{args.repeats}: {WAYS[way]}")
            found.append(child(__file__, model, way, args.steps))
    return {way: medians(found) for way, found in rows.items()}


def train(model: str, way: str, steps: str) -> dict[str, float]:
    """Steps of a LoRA on one kind of base."""
    import gc

    import torch

    from edgeft.contract.grid import Quant
    from edgeft.plugins import host
    from edgeft.train.base import load_base
    from edgeft.train.checkpoint import trainable
    from edgeft.train.grid import put_on_grid

    gpu, base = torch.cuda.is_available(), load_base(model)
    if way != "floats":
        put_on_grid(base.model, Quant("int4", 64), packed=way == "packed")
    method = host().method("lora")
    tuned = method.attach(base.model, method.Options(r=16))
    base.model.gradient_checkpointing_enable()
    base.model.enable_input_require_grads()
    device = torch.device("cuda" if gpu else "cpu")
    tuned.to(device).train()
    optimizer = torch.optim.AdamW(trainable(tuned).values(), lr=1e-4)
    ids = torch.randint(3, base.model.config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))
    ids = ids.to(device)
    gc.collect()
    held = _reset_peak(gpu)
    begin = time.perf_counter()
    for _ in range(int(steps)):
        with torch.autocast("cuda", torch.bfloat16, enabled=gpu):
            loss = tuned(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    value = float(loss.detach())
    seconds = time.perf_counter() - begin
    peak = torch.cuda.max_memory_allocated() / 2**20 if gpu else peak_mib()
    return {"held_mib": held, "peak_mib": peak, "tokens_per_s": int(steps) * ids.numel() / seconds, "loss": value}


def _reset_peak(gpu: bool) -> float:
    """Give freed memory back, forget the peak of loading; MiB held now."""
    import ctypes

    import torch

    if gpu:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's way to reset VmHWM
    return peak_mib()


def describe(report: dict[str, Any], shape: str) -> str:
    """Both tables."""
    parts = [name for name in next(iter(report["plan"].values())) if name != "total"]
    planned = [(name, *(f"{row[part]:.2f}" for part in parts), f"{row['total']:.1f}",
                "yes" if row["total"] <= CARD else "no") for name, row in report["plan"].items()]
    lines = [f"planned, GiB, int4 block 64, rank 16, passes of 2,048 tokens, on a card of {CARD:.0f} GiB", "",
             table(["model", *parts, "total", "fits"], planned)]
    measured = [(WAYS[way], f"{row['held_mib']:,.0f}", f"{row['peak_mib']:,.0f}", f"{row['tokens_per_s']:,.0f}",
                 f"{row['loss']:.4f}") for way, row in report["rows"].items()]
    if measured:
        lines += ["", f"measured, {shape}, random weights", "",
                  table(["base", "MiB before the steps", "peak MiB", "tokens/s", "loss"], measured)]
    return "\n".join(lines)


if __name__ == "__main__":
    start(main)
