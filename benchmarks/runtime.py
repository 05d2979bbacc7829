"""The runner against llama.cpp and onnxruntime-genai on the same weights: speed, memory, adapters, start, drafts.

    python benchmarks/runtime.py --llama-python PYTHON --genai-python PYTHON
    python benchmarks/runtime.py --only swap,start --shape 135m --repeats 5

Makes models of two shapes with ../shared/bench/make_model.py, exports each with a LoRA on every linear layer, and runs
`edgeft install`. Then, all programs in turn, --repeats times, 128 + 128 tokens, medians:

  speed     prefill and decode without an adapter, against both peers
  lora      decode with the adapter, unmerged, against llama.cpp with the same; what it takes of decode
  swarm     8 requests with 8 adapters, 128 + 64 tokens, against llama.cpp, which serves one after the other
  memory    peak resident memory of `edgeft run`, Python included
  swap      from asking for another resident adapter, or one that is not open, to where its first pass could start
  start     from the start of the process `edgeft run` to the first of its tokens, a prompt of 16 tokens
  copying   SNIPS to JSON by a LoRA on stories3m: decode with drafts against the same without; and on stories

The peers are timed by ../shared/bench/peers.py with the interpreters that have them; without one, its rows are left
out. A target that is missed is printed as MISSED; exit code 1 only where drafts changed an answer in fp32, where they
are made by default (int4 rounds a pass of several tokens otherwise than one of a single token).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    EDGEFT,
    SHARED,
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
from drafts import compare_drafts
from targets import Row, rated, rated_drafts

PARTS = ("speed", "lora", "swarm", "memory", "swap", "start", "copying")
ROWS = 8
WORDS = "one two three "  # what the models' tokenizers were made of


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--maker", type=Path, default=SHARED / "bench" / "make_model.py")
    parser.add_argument("--peers", type=Path, default=SHARED / "bench" / "peers.py")
    parser.add_argument("--peer-python", help="the interpreter that has both peers")
    parser.add_argument("--llama-python", help="the one that has llama-cpp-python and gguf")
    parser.add_argument("--genai-python", help="the one that has onnxruntime-genai and its builder")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), metavar="PART,...")
    parser.add_argument("--shape", action="append", choices=["tiny", "135m", "360m"],
                        help="repeat for more (default: 135m and 360m)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--adapter-run", type=Path, help="a run on SNIPS for `copying`, so that none is trained")
    parser.add_argument("--lines", type=int, default=60, help="of `copying`")
    parser.add_argument("--no-install", action="store_true", help="measure the bundles as they were exported")
    args = parser.parse_args()
    if args.child:
        verb, *rest = args.child
        print(json.dumps({"ours": ours, "drafts": compare_drafts}[verb](*rest)))
        return
    if unknown := set(args.only) - set(PARTS):
        parser.error(f"--only: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    need(args.maker, args.peers)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # all that is started here inherits it
    with workspace(args) as work:
        found = {shape: shape_rows(args, work / shape, shape) for shape in args.shape or ["135m", "360m"]} \
            if set(args.only) - {"copying"} else {}
        copying = copying_rows(args, work / "copying") if "copying" in args.only else None
    rows = [row for shape, results in found.items() for row in rated(shape, results, set(args.only))]
    rows += rated_drafts(copying) if copying else []
    report = {"benchmark": "runtime", "machine": machine(), "threads": args.threads, "repeats": args.repeats,
              "tokens": [args.prompt_tokens, args.new_tokens], "runs": found, "copying": copying,
              "rows": [{**row.__dict__, "value": row.value, "met": row.met} for row in rows]}
    print(json.dumps(report, indent=2) if args.json else describe(report, rows))
    sys.exit(0 if copying is None or not copying["fp32"]["differ"] else 1)


def describe(report: dict[str, Any], rows: list[Row]) -> str:
    """The table."""
    cells = [(row.what, row.shape, f"{row.ours:,.3f}" if row.ours < 10 else f"{row.ours:,.1f}",
              f"{row.theirs:,.1f}" if row.theirs else "", f"{row.value:.2f}" if row.theirs else "",
              f"{'<=' if row.most else '>='} {row.target:g}", verdict(row.met)) for row in rows]
    prompt, new = report["tokens"]
    lines = [f"{prompt} + {new} tokens, {report['threads']} threads, medians of {report['repeats']} in turn", "",
             table(["", "shape", "ours", "theirs", "ratio", "target", ""], cells)]
    for quant, found in (report["copying"] or {}).items():
        lines += ["", f"{quant}: {found['differ']} of {found['answers']:.0f} answers differ with drafts from those "
                      f"without, {found['wrong']} of them by more than a near tie; "
                      f"{found['tokens_per_pass']:.2f} tokens per pass"]
    return "\n".join(lines)


def prepare(args: Any, folder: Path, shape: str) -> Path:
    """Model, LoRA, bundle, its installation, and seven more adapters; what is there is not made again."""
    bundle = folder / "bundle"
    if not (folder / "copies").is_dir():
        say(f"making and exporting the {shape} model")
        run([sys.executable, args.maker, "--shape", shape, "--out", folder / "model", "--lora", folder / "lora",
             "--rank", args.rank])
        run([*EDGEFT, "export", folder / "lora", "--base", folder / "model", "--device", "cpu-x86_64", "--quant",
             "int4", "--name", "lora", "--out", bundle])
        _write_copies(bundle / "adapters" / "lora.safetensors", folder / "copies")
    if not args.no_install:
        run([*EDGEFT, "install", bundle])
    return bundle


def _write_copies(adapter: Path, folder: Path) -> None:
    """The adapter again, each time a little different: other bytes, the same work."""
    from edgeft.contract.tensors import TensorFile, write_tensors

    file = TensorFile(adapter)
    folder.mkdir()
    for index in range(1, ROWS):
        factor = np.float32(1 + 0.01 * index)
        write_tensors(folder / f"lora{index}.safetensors", {
            name: np.array(file[name]) * (factor if name.endswith(".B") else np.float32(1)) for name in file},
            file.metadata)


def shape_rows(args: Any, folder: Path, shape: str) -> dict[str, dict[str, float]]:
    """Every program on one shape, in turn; medians by program."""
    folder.mkdir(parents=True, exist_ok=True)
    bundle, runs = prepare(args, folder, shape), {}
    for turn in range(args.repeats):
        for name, measure in programs(args, folder, bundle).items():
            say(f"{shape}, turn {turn + 1} of {args.repeats}: {name}")
            runs.setdefault(name, []).append(measure())
    return {name: medians(found) for name, found in runs.items()}


def programs(args: Any, folder: Path, bundle: Path) -> dict[str, Any]:
    """What is run for the parts that were asked for: name -> a function that runs it once."""
    only = set(args.only)
    llama, genai = args.llama_python or args.peer_python, args.genai_python or args.peer_python
    lora = ("--lora", folder / "lora")
    chosen: dict[str, Any] = {}
    if only & {"speed", "lora", "swarm", "swap"}:
        chosen["edgeft"] = lambda: child(__file__, "ours", bundle, folder / "copies", args.threads,
                                         args.prompt_tokens, args.new_tokens)
    if llama and only & {"speed", "memory"}:
        chosen["llama.cpp"] = lambda: peer(args, llama, "llama.cpp", folder)
    if llama and only & {"lora", "swarm"}:
        chosen["llama.cpp, adapter"] = lambda: peer(args, llama, "llama.cpp", folder, *lora)
    if llama and "swarm" in only:
        chosen["llama.cpp, swarm"] = lambda: peer(args, llama, "swarm", folder, *lora, "--adapters", ROWS, "--new",
                                                  args.new_tokens // 2)
    if genai and "speed" in only:
        chosen["genai"] = lambda: peer(args, genai, "genai", folder)
    if "memory" in only:
        chosen["memory"] = lambda: memory(args, bundle)
    if "start" in only:
        chosen["start"] = lambda: first_token(args, bundle)
    return chosen


def ours(bundle: str, copies: str, threads: str, prompt: str, new: str) -> dict[str, Any]:
    """One process of ours: the base, the adapter, switching, and a batch whose rows have an adapter each."""
    from edgeft.run import load
    from edgeft.run.bench import measure

    model = load(bundle, threads=int(threads))
    for path in sorted(Path(copies).iterdir()):
        model.register_adapter(path.stem, path)
    found = measure(model, {"lora": 1.0}, prompt_tokens=int(prompt), new_tokens=int(new), batch=ROWS)
    return {**{key: value for key, value in found.items() if isinstance(value, (int, float))},
            **{f"base_{key}": value for key, value in found["base"].items()},
            **{f"batch_{key}": value for key, value in found["batch"].items()}}


def peer(args: Any, python: str, verb: str, folder: Path, *more: object) -> dict[str, Any]:
    """One process of a peer, by the program that all projects share."""
    out = run([python, args.peers, verb, "--model", folder / "model", "--threads", str(args.threads), "--prompt",
               str(args.prompt_tokens), *(() if "--new" in more else ("--new", str(args.new_tokens))),
               *map(str, more)], env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"})
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def memory(args: Any, bundle: Path) -> dict[str, float]:
    """MiB that `edgeft run` takes at its peak, by its own account, without the adapter and with it."""
    found = {}
    for name in ("none", "lora"):
        out = json.loads(run(asked(args, bundle, name, args.prompt_tokens, args.new_tokens, "--json")))
        found |= {name: out["peak_rss_mib"], f"{name}_prompt": len(out["prompt_tokens"]),
                  f"{name}_new": len(out["tokens"])}
    return found


def first_token(args: Any, bundle: Path) -> dict[str, float]:
    """Seconds of the whole process that answers 16 tokens with one; the second of two, the files in memory."""
    for _ in range(2):
        begun = time.perf_counter()
        subprocess.run([str(word) for word in asked(args, bundle, "none", 16, 1)], check=True, capture_output=True)
        seconds = time.perf_counter() - begun
    return {"seconds": seconds}


def asked(args: Any, bundle: Path, adapter: str, prompt: int, new: int, *more: str) -> list[object]:
    """`edgeft run` with a prompt of about so many tokens."""
    from tokenizers import Tokenizer

    size = len(Tokenizer.from_file(str(bundle / "tokenizer.json")).encode(WORDS * 16).ids) / 16
    return [*EDGEFT, "run", bundle, "--raw", "--prompt", (WORDS * round(prompt / size)).strip(), "--adapter", adapter,
            "--max-tokens", new, "--temperature", 0, "--threads", args.threads, *more]


def copying_rows(args: Any, folder: Path) -> dict[str, Any]:
    """A bundle that turns requests into JSON, with drafts and without, in processes of their own."""
    snips, stories = SHARED / "data" / "snips", SHARED / "data" / "tinystories" / "probe.jsonl"
    need(STORIES, snips, stories)
    source = args.adapter_run or folder / "run"
    folder.mkdir(parents=True, exist_ok=True)
    if not source.is_dir():
        from snips import LAYERS

        say("training a LoRA on SNIPS")
        run([*EDGEFT, "train", "lora", "--base", STORIES, "--data", snips / "train.jsonl", "--out", source, "--epochs",
             "1", "--r", "32", "--lora-alpha", "64", "--lr", "3e-3", "--holdout", "0", "--target-modules", LAYERS,
             "--device", "cpu-x86_64"])
    runs: dict[str, list[dict[str, Any]]] = {"fp32": [], "int4": []}
    for quant in runs:
        if not (folder / quant).is_dir():
            run([*EDGEFT, "export", source, "--device", "cpu-x86_64", "--quant", quant, "--name", "snips", "--out",
                 folder / quant])
        if not args.no_install:
            run([*EDGEFT, "install", folder / quant])
    for turn in range(args.repeats):
        for quant, found in runs.items():
            say(f"copying, {quant}, turn {turn + 1} of {args.repeats}")
            found.append(child(__file__, "drafts", folder / quant, snips / "test.jsonl", stories, args.lines,
                               args.threads))
    return {quant: {**medians(found), **{key: max(one[key] for one in found) for key in ("differ", "wrong")}}
            for quant, found in runs.items()}


if __name__ == "__main__":
    start(main)
