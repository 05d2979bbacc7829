"""Graphs that others exported, as bases of ours: optimum-onnx and ONNX Runtime GenAI's model builder.

    python benchmarks/foreign_graphs.py --optimum-python P --genai-python P

Each exports stories3m in its own environment: optimum for text generation with a past (fp32, and rounded to 8 bits by
ONNX Runtime's dynamic quantization), the builder as fp32 and int4. From each graph `edgeft export --graph` makes two
bundles with one trained LoRA, fp32 and int4, and their tokens are compared with those of the bundles whose graph was
built here. A graph of the model with one weight changed by a little must be refused. Environments:

    python -m venv P; pip install 'transformers<4.58' optimum-onnx==0.1.0 onnxscript 'torch>=2.11,<2.14'
    python -m venv P; pip install onnxruntime-genai transformers onnx onnx_ir 'torch>=2.11,<2.14'       (make genai)

  parity     largest difference of any logit from torch on the same weights, without and with the LoRA, at most 1e-3
  greedy     answers equal to torch's
  as built   answers equal to those of the bundle whose graph was built here, 64 tokens
  rounded    the same share of int4's tokens up to the first other one, as the bundle is: its products round activations
             to int8, and near ties fall either way. The columns before it are of int4 with activations as they are

Ends with 1 where a bundle does not equal torch or the graph built here, and where the changed model is accepted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import (
    E2E,
    EDGEFT,
    STORIES,
    agreement,
    arguments,
    fail,
    machine,
    need,
    read_lines,
    run,
    say,
    start,
    table,
    workspace,
)

OPTIMUM = """
import sys
from optimum.exporters.onnx import main_export
main_export(sys.argv[1], output=sys.argv[2], task="text-generation-with-past", device="cpu", do_validation=False)
"""
DYNAMIC = """
import sys
from onnxruntime.quantization import quantize_dynamic
quantize_dynamic(sys.argv[1], sys.argv[2], per_channel=True)
"""
BOUND, TOKENS = 1e-3, 64
Tokens = list[list[int]]  # of each answer
ENVIRONMENT = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--optimum-python", type=Path, help="an interpreter with optimum-onnx")
    parser.add_argument("--genai-python", type=Path, help="an interpreter with onnxruntime-genai, torch and onnx_ir")
    parser.add_argument("--steps", type=int, default=60, help="of training the LoRA")
    parser.add_argument("--prompts", type=int, default=10)
    args = parser.parse_args()
    need(STORIES, E2E, *(path for path in (args.optimum_python, args.genai_python) if path))
    if not (args.optimum_python or args.genai_python):
        fail("name --optimum-python or --genai-python, or both (--help says what they need).")
    with workspace(args) as work:
        say("training a LoRA")
        run([*EDGEFT, "train", "lora", "--base", STORIES, "--data", E2E / "train.jsonl", "--max-steps", args.steps,
             "--out", work / "lora"])
        graphs = {"built here": None, **make_graphs(work, args.optimum_python, args.genai_python)}
        built: dict[str, tuple[Tokens, Tokens]] = {}
        rows = [measure(work, name, graph, quant, args.prompts, built) for quant in ("fp32", "int4")
                for name, graph in graphs.items()]
        refused = refuse(work, next(graph for graph in graphs.values() if graph))
    report = {"benchmark": "foreign_graphs", "machine": machine(), "rows": rows, "refused": refused}
    print(json.dumps(report, indent=2) if args.json else describe(report, args.prompts))
    wrong = [f"{row['graph']} as {row['quant']}" for row in rows if not row["good"]]
    if wrong or not refused:
        fail(f"not equal: {', '.join(wrong)}" if wrong else "a graph of a changed model was accepted")


def make_graphs(work: Path, optimum: Path | None, genai: Path | None) -> dict[str, Path]:
    """Name -> model.onnx."""
    made: dict[str, Path] = {}
    if optimum:
        say("optimum-onnx exports")
        made["optimum fp32"] = work / "optimum" / "model.onnx"
        run([optimum, "-c", OPTIMUM, STORIES, work / "optimum"], env=ENVIRONMENT)
        made["optimum dynamic int8"] = work / "optimum" / "model.int8.onnx"
        run([optimum, "-c", DYNAMIC, made["optimum fp32"], made["optimum dynamic int8"]], env=ENVIRONMENT)
    for precision in ("fp32", "int4") if genai else ():
        say(f"GenAI's builder exports {precision}")
        folder = work / f"builder-{precision}"
        run([genai, "-m", "onnxruntime_genai.models.builder", "-m", STORIES, "-o", folder, "-p", precision, "-e", "cpu",
             "-c", work / "cache"], env=ENVIRONMENT)
        made[f"builder {precision}"] = folder / "model.onnx"
    return made


def measure(work: Path, name: str, graph: Path | None, quant: str, prompts: int,
            built: dict[str, tuple[Tokens, Tokens]]) -> dict[str, Any]:
    """One bundle: its proof, and its answers beside those of the graph built here, which are kept in `built`."""
    from edgeft.export.verify import exact_copy

    bundle = work / f"bundle-{quant}-{name.replace(' ', '-')}"
    say(f"exporting {bundle.name}")
    words = [] if graph is None else ["--graph", graph, "--base", STORIES]
    run([*EDGEFT, "export", work / "lora", *words, "--device", "cpu-x86_64", "--quant", quant, "--name", "lora",
         "--out", bundle])
    manifest = json.loads((bundle / "bundle.json").read_text())
    reports = [manifest["parity"]["base"], manifest["parity"]["adapters"]["lora"]]
    reports = [report.get("exact_activations", report) for report in reports]
    parity = max(report["largest_logit_difference"] for report in reports)
    greedy, asked = (sum(report[key] for report in reports) for key in ("greedy_equal", "prompts"))
    given = answers(bundle, prompts)
    with exact_copy(bundle) as exact:
        own = answers(exact, prompts) if quant != "fp32" else given
    reference = built.setdefault(quant, (own, given))  # the graph built here is the first
    equal = sum(one == other for one, other in zip(own, reference[0], strict=True))
    return {"graph": name, "quant": quant, "cache": manifest["graph"]["cache"], "padding": manifest["graph"]["padding"],
            "parity": parity, "greedy": greedy, "asked": asked, "equal": equal, "answers": len(own),
            "rounded": agreement(reference[1], given),
            "good": parity <= BOUND and greedy == asked and equal == len(own)}


def answers(bundle: Path, prompts: int) -> Tokens:
    """Greedy tokens without and with the LoRA."""
    from edgeft.run import load

    model = load(bundle)
    texts = [line["prompt"] for line in read_lines(E2E / "test.jsonl")[:prompts]]
    return [model.generate(text, adapters=used, max_tokens=TOKENS, temperature=0).tokens
            for used in ({}, {"lora": 1.0}) for text in texts]


def refuse(work: Path, graph: Path) -> str:
    """What `export` says to a base with one weight changed by a little; empty if it takes it."""
    import numpy as np

    from edgeft.contract.tensors import Weights, write_tensors

    changed = work / "changed"
    shutil.copytree(STORIES, changed, copy_function=shutil.copyfile)
    changed.chmod(0o755)
    stored = Weights(STORIES)
    tensors = {name: np.array(stored[name]) for name in stored}
    tensors["model.layers.2.mlp.up_proj.weight"] *= 1.001
    write_tensors(changed / "model.safetensors", tensors, {"format": "pt"})
    done = subprocess.run([str(word) for word in (*EDGEFT, "export", "--graph", graph, "--base", changed, "--device",
                                                  "cpu-x86_64", "--out", work / "never")], capture_output=True,
                          text=True, check=False)
    said = "".join(done.stderr.rpartition("edgeft: ")[1:]).strip()
    return said if done.returncode == 1 and "is not a graph of this base" in said else ""


def describe(report: dict[str, Any], prompts: int) -> str:
    """The table, and the refusal."""
    rows: list[Sequence[object]] = [
        (row["graph"], row["quant"], row["cache"], row["padding"], f"{row['parity']:.1e}",
         f"{row['greedy']}/{row['asked']}", f"{row['equal']}/{row['answers']}",
         f"{100 * row['rounded']:.1f} %" if row["quant"] != "fp32" else "") for row in report["rows"]]
    return "\n".join([f"{prompts} prompts without and with the LoRA, {TOKENS} greedy tokens", "", table(
        ["graph", "bundle", "cache", "padded", "parity", "greedy", "as built", "rounded"], rows), "",
        "a base with one weight changed: " + (report["refused"] or "ACCEPTED")])


if __name__ == "__main__":
    start(main)
