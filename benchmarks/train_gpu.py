"""How fast are LoRA, QLoRA and full tuning of a 1B Llama on a GPU, beside plain PEFT + transformers Trainer?

    python benchmarks/train_gpu.py                     every method, 40 steps each, 3 times in turn
    python benchmarks/train_gpu.py --method lora

The base has the shape of Llama 3.2 1B with random weights, made here; nothing is downloaded. Both contestants train on
the same lines with the same batch size, AdamW, learning rate, schedule, clipping and precision, each in a process of
its own, in turn; tokens are counted and timed from outside as benchmarks/train_cpu.py says.

  LoRA    a frozen base in bfloat16, adapters in float32, on both sides
  QLoRA   edgeft: the base on the int4 grid of --device, packed where `edgeft train` offers it; the peer: bitsandbytes
          NF4, where that is installed. Each loss is on the contestant's own base
  full    float32 weights and AdamW, products in bfloat16, on both sides
  peak    on a GPU, of its memory as torch allocates it; on a CPU, of the process
  loss    after training, on lines of e2e/valid: nats per completion token

Without a GPU the same programs run on a tiny model, to show that they work: those rows say nothing about a GPU, and the
table says so.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import train_cpu
from common import (
    E2E,
    EDGEFT,
    STORIES,
    arguments,
    child,
    machine,
    medians,
    need,
    run,
    say,
    start,
    table,
    verdict,
    workspace,
)

TARGET = 1.3  # times the peer's tokens/s
SAME_LOSS = 0.02
METHODS = ("lora", "qlora", "full")
BILLION = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 2048}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 4096, "max_position_embeddings": 512}
LABELS = {"edgeft": "edgeft", "compiled": "edgeft --compile", "peer": "PEFT + Trainer"}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=E2E / "train.jsonl", help="lines of prompt and completion")
    parser.add_argument("--eval-data", type=Path, default=E2E / "valid.jsonl")
    parser.add_argument("--tokenizer", type=Path, default=STORIES, help="a folder with a tokenizer; weights not read")
    parser.add_argument("--method", choices=METHODS, action="append", help="only these")
    parser.add_argument("--device", default="cpu-x86_64", help="whose int4 grid QLoRA trains on")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--skip", type=int, default=5, help="first steps that are not timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--eval-lines", type=int, default=200)
    args = parser.parse_args()
    if args.child:
        verb, *rest = args.child
        print(json.dumps(CHILDREN[verb](*(json.loads(word) if word.startswith("{") else word for word in rest))))
        return
    need(args.data, args.eval_data, args.tokenizer)
    with workspace(args) as work:
        report = compare(args, work)
    print(json.dumps(report, indent=2) if args.json else describe(report))


def compare(args: Any, work: Path) -> dict[str, Any]:
    """Every method's contestants in turn."""
    gpu = child(__file__, "gpu")["name"]
    base = child(__file__, "base", json.dumps({"shape": BILLION if gpu else TINY, "tokenizer": str(args.tokenizer)}),
                 work / "base")
    hidden = (BILLION if gpu else TINY)["hidden_size"]
    shared = {"base": str(work / "base"), "data": str(args.data), "eval_data": str(args.eval_data), "rank": 16,
              "alpha": 32, "batch_size": args.batch_size, "max_length": 512, "precision": "bf16" if gpu else "fp32",
              "steps": args.steps, "skip": args.skip, "gpu": bool(gpu), "eval_lines": args.eval_lines}
    rows, left_out = {}, []
    for method in args.method or METHODS:
        setup = {**shared, "method": "full" if method == "full" else "lora",
                 "lr": (5e-5 if method == "full" else 2e-4) * 2048 / hidden}
        contestants = {"edgeft": {**setup, "options": grid(args.device) if method == "qlora" else []}}
        if gpu:
            contestants["compiled"] = {**setup, "options": [*contestants["edgeft"]["options"], "--compile"]}
        if method != "qlora" or (gpu and find_spec("bitsandbytes")):
            contestants["peer"] = {**setup, "four_bit": method == "qlora"}
        else:
            left_out.append("QLoRA of the peer: " + ("bitsandbytes is not installed." if gpu else "it needs a GPU."))
        rows[method] = turns(contestants, args.repeats, work / method)
    return {"benchmark": "train_gpu", "machine": {**machine(), "gpu": gpu}, "setup": shared, "repeats": args.repeats,
            "parameters": base["parameters"], "left_out": left_out, "runs": rows,
            "medians": {method: {name: medians(found) for name, found in one.items()} for method, one in rows.items()}}


def turns(contestants: dict[str, dict[str, Any]], repeats: int, work: Path) -> dict[str, list[dict[str, Any]]]:
    """Each contestant `repeats` times, the order turned round every time."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for repeat in range(repeats):
        for name in list(contestants)[:: 1 if repeat % 2 == 0 else -1]:
            setup, out = {**contestants[name], "seed": repeat}, work / f"{name}-{repeat}"
            found = child(__file__, "peer" if name == "peer" else "edgeft", json.dumps(setup), out)
            if "--device" in setup.get("options", ()):  # its base is the grid's
                told = run([*EDGEFT, "eval", out, "--data", setup["eval_data"], "--json"])
                found["loss"] = json.loads(told)["loss"]
            else:
                found |= child(__file__, "evaluate", json.dumps(setup), out)
            runs[name].append(found)
            say(f"{work.name} {name:8} run {repeat + 1}/{repeats}: {found['tokens_per_s']:,.0f} tokens/s, "
                f"{found['peak_mib']:,.0f} MiB, loss {found['loss']:.3f}")
    return runs


def grid(device: str) -> list[str]:
    """How `edgeft train lora` is told to train on an int4 base, packed where it can."""
    offers = run([*EDGEFT, "train", "lora", "--help"])
    return ["--device", device, *(["--packed", "yes"] if "--packed" in offers else [])]


def describe(report: dict[str, Any]) -> str:
    """The table, and what it does not say."""
    gpu, setup = report["machine"]["gpu"], report["setup"]
    rows = [(method if name == "edgeft" else "", LABELS[name], f"{row['tokens_per_s']:,.0f}", f"{row['padding']:.1%}",
             f"{row['peak_mib']:,.0f}", f"{row['loss']:.3f}")
            for method, found in report["medians"].items() for name, row in found.items()]
    lines = [f"{gpu or 'CPU'}: Llama of {report['parameters'] / 1e6:,.1f} M parameters with random weights, "
             f"{setup['steps']} steps of {setup['batch_size']} lines, {setup['precision']}, medians of "
             f"{report['repeats']} runs in turn", "",
             table(["", "", "tokens/s", "padding", "peak MiB", "loss"], rows), ""]
    if not gpu:
        lines.append("There is no GPU here. The rows above are of a tiny model on the CPU and only show that the "
                     "programs run.\nLoRA, QLoRA and full tuning of the 1B model on a GPU: NOT MEASURED.")
    for method, found in report["medians"].items():
        if gpu and "peer" in found:
            best = max((name for name in found if name != "peer"), key=lambda name: found[name]["tokens_per_s"])
            ratio = found[best]["tokens_per_s"] / found["peer"]["tokens_per_s"]
            loss = found[best]["loss"] / found["peer"]["loss"]
            lines.append(f"{method}: {LABELS[best]} has {ratio:.2f} of the peer's tokens/s (target {TARGET}: "
                         f"{verdict(ratio >= TARGET)}), {found[best]['peak_mib'] / found['peer']['peak_mib']:.2f} of "
                         f"its memory, {loss:.3f} of its loss (at most {1 + SAME_LOSS}: "
                         f"{verdict(loss <= 1 + SAME_LOSS)})")
    return "\n".join([*lines, *(f"Not measured: {text}" for text in report["left_out"])])


def find_gpu() -> dict[str, str]:
    """The GPU's name; empty where there is none."""
    import torch

    return {"name": torch.cuda.get_device_name() if torch.cuda.is_available() else ""}


def make_base(wanted: dict[str, Any], out: str) -> dict[str, int]:
    """A Llama of this shape with random weights, and a tokenizer beside it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(wanted["tokenizer"])
    config = AutoConfig.for_model("llama", tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
                                  eos_token_id=tokenizer.eos_token_id, **wanted["shape"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).bfloat16()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"parameters": sum(one.numel() for one in model.parameters())}


def with_gpu_memory(result: dict[str, Any]) -> dict[str, Any]:
    """On a GPU the peak of its memory takes the place of the process's."""
    import torch

    if torch.cuda.is_available():
        result |= {"host_peak_mib": result["peak_mib"], "peak_mib": torch.cuda.max_memory_allocated() / 2**20}
    return result


CHILDREN = {"gpu": find_gpu, "base": make_base, "evaluate": train_cpu.evaluate,
            "edgeft": lambda setup, out: with_gpu_memory(train_cpu.train_edgeft(setup, out)),
            "peer": lambda setup, out: with_gpu_memory(train_cpu.train_peer(setup, out))}

if __name__ == "__main__":
    start(main)
    sys.exit(0)
