"""Every first-party method on one base and one task, in one table: what it trains, costs, learns, forgets, and whether
its bundle answers as torch does.

    python benchmarks/methods.py                          all methods, one epoch of e2e on stories3m
    python benchmarks/methods.py --method lora --method full

For each method: `edgeft train` for --epochs with its own defaults, `edgeft export` to float32 (beside the base where
the method can, merged otherwise), and then, from the bundle by the runner:

  trained        parameters that learn, and their share of the base's
  size           the adapter's file in the bundle (the whole weights for a merged method)
  tokens/s, MiB  of training: medians of --repeats short runs of --speed-steps, the methods in turn; peak of the process
  loss, BLEU     on e2e/test: nats per completion token, and sacrebleu's corpus BLEU of greedy answers
  forgotten      nats per token on tinystories/probe, tuned minus base
  diff, equal    largest logit difference from torch (PEFT as published), and greedy answers equal to the last token, on
                 --prompts prompts of e2e/test with --new tokens each

With --work FOLDER runs and bundles stay there; what a call finds there is not made again. Ends with exit code 1 when
a bundle does not answer as torch does.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import (
    E2E,
    EDGEFT,
    SHARED,
    STORIES,
    arguments,
    child,
    machine,
    medians,
    need,
    read_lines,
    run,
    say,
    start,
    table,
    verdict,
    workspace,
)

LOGITS = 1e-3
BATCH = 16


@dataclass(frozen=True)
class Way:
    """One row: a method, options beside its defaults, and how it is exported."""

    method: str
    train: tuple[str, ...] = ()
    export: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """A folder name; ways that train alike share a run."""
        return "-".join([self.method, *(word.strip("-") for word in self.train)])

    @property
    def compressed(self) -> bool:
        """Whether the bundle holds less than what was trained, so that it is its own adapter's equal alone."""
        return "--as-adapter" in self.export


WAYS = {
    "full": Way("full"),
    "full, as adapter r32": Way("full", export=("--as-adapter", "--rank", "32", "--name", "tuned")),
    "lora": Way("lora"),
    "lora, with the head": Way("lora", ("--target-modules",
                                        "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,lm_head")),
    "lora, DoRA": Way("lora", ("--use-dora",)),
    "lora, rsLoRA r32": Way("lora", ("--use-rslora", "--r", "32")),
    "ia3": Way("ia3"),
    "prefix_tuning": Way("prefix_tuning"),
    "prompt_tuning": Way("prompt_tuning"),
    "p_tuning": Way("p_tuning"),
    "multitask_prompt": Way("multitask_prompt"),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--method", action="append", choices=WAYS, help="repeat for more (default: all)")
    parser.add_argument("--base", type=Path, default=STORIES)
    parser.add_argument("--data", type=Path, default=E2E / "train.jsonl")
    parser.add_argument("--valid", type=Path, default=E2E / "valid.jsonl")
    parser.add_argument("--test", type=Path, default=E2E / "test.jsonl")
    parser.add_argument("--probe", type=Path, default=SHARED / "data" / "tinystories" / "probe.jsonl")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--speed-steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new", type=int, default=64)
    args = parser.parse_args()
    if args.child:
        verb, *rest = args.child
        print(json.dumps(CHILDREN[verb](*rest)))
        return
    need(args.base, args.data, args.valid, args.test, args.probe)
    names = list(dict.fromkeys(args.method or WAYS))
    with workspace(args) as work:
        speed = speeds(names, args, work)  # first: a machine that is quiet now may not be in half an hour
        rows = {name: {**speed.get(name, {}), **whole(name, args, work)} for name in names}
    equal = all(row["largest"] <= LOGITS and row["equal"] == row["prompts"] for row in rows.values())
    report = {"benchmark": "methods", "machine": machine(), "epochs": args.epochs, "equal": equal, "methods": rows}
    print(json.dumps(report, indent=2) if args.json else describe(report))
    sys.exit(0 if equal else 1)


def whole(name: str, args: Any, work: Path) -> dict[str, Any]:
    """Train, export and ask one method; everything but its speed."""
    way = WAYS[name]
    folder, bundle = work / f"run-{way.place}", work / f"bundle-{way.place}{'-small' if way.compressed else ''}"
    if not folder.exists():
        say(f"{name}: training")
        run([*EDGEFT, "train", way.method, "--base", args.base, "--data", args.data, "--eval-data", args.valid,
             "--probe", args.probe, "--epochs", args.epochs, "--out", folder, *way.train])
    record = json.loads((folder / "edgeft.json").read_text())
    if not bundle.exists():
        say(f"{name}: exporting")
        run([*EDGEFT, "export", folder, "--device", "cpu-x86_64", "--quant", "fp32", "--out", bundle,
             *([] if way.method == "full" else ["--name", "tuned"]), *way.export])
    manifest = json.loads((bundle / "bundle.json").read_text())
    say(f"{name}: asking torch and the bundle")
    if way.compressed:
        own = manifest["parity"]["adapters"]["tuned"]
        asked = {"prompts": own["prompts"], "largest": own["largest_logit_difference"], "equal": own["greedy_equal"],
                 "kept": own["fidelity"]["kept"]}
    else:
        asked = child(__file__, "parity", args.base, folder, bundle, args.test, args.prompts, args.new)
    probe = ["--probe", args.probe] if way.compressed else []
    found = json.loads(run([*EDGEFT, "eval", bundle, "--data", args.test, "--json", *probe]))
    forgotten = found["forgetting"] if way.compressed else record["forgetting"]["forgetting"]
    bleu = child(__file__, "bleu", bundle, args.test, args.new)["bleu"]
    file = "adapters/tuned.safetensors" if manifest["adapters"] else "model.onnx.data"
    return {"trained": record["metrics"]["trained_parameters"], "of": record["metrics"]["parameters"],
            "size_mib": manifest["files"][file]["size"] / 2**20,
            "valid_loss": None if way.compressed else record["metrics"]["eval"]["valid"]["loss"],
            "test_loss": found["loss"], "bleu": bleu, "forgotten": forgotten, **asked}


def speeds(names: list[str], args: Any, work: Path) -> dict[str, dict[str, Any]]:
    """Training speed and peak memory: short runs, all methods in turn, so that a slow minute hits all alike."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names if not WAYS[name].compressed}
    for turn in range(args.repeats):
        for name in found:
            out = work / f"speed-{turn}-{WAYS[name].place}"
            if not out.exists():
                say(f"{name}: speed {turn + 1} of {args.repeats}")
                run([*EDGEFT, "train", WAYS[name].method, "--base", args.base, "--data", args.data, "--max-steps",
                     args.speed_steps, "--holdout", 0, "--out", out, *WAYS[name].train])
            metrics = json.loads((out / "edgeft.json").read_text())["metrics"]
            found[name].append({"tokens_per_s": metrics["tokens_per_s"], "train_peak_mib": metrics["peak_mib"]})
    return {name: medians(runs) for name, runs in found.items()}


def describe(report: dict[str, Any]) -> str:
    """The table, and what LoRA saves against full tuning."""
    rows = [(name, f"{row['trained']:,}", f"{row['trained'] / row['of']:.2%}", f"{row['size_mib']:.3f}",
             _known(row, "tokens_per_s", ",.0f"), _known(row, "train_peak_mib", ",.0f"),
             _known(row, "valid_loss", ".3f"), f"{row['test_loss']:.3f}", f"{row['bleu']:.1f}",
             f"{row['forgotten']:+.3f}", f"{row['largest']:.1e}", f"{row['equal']}/{row['prompts']}")
            for name, row in report["methods"].items()]
    text = [table(["method", "trained", "share", "size MiB", "tokens/s", "peak MiB", "loss valid", "loss test", "BLEU",
                   "forgotten", "largest diff", "equal"], rows), ""]
    text += [f"{name}: keeps {row['kept']:.1%} of the change (squared norm); what it equals is that adapter in torch"
             for name, row in report["methods"].items() if "kept" in row]
    both = report["methods"]
    if {"lora", "full"} <= both.keys():
        lora, full = both["lora"], both["full"]
        text.append(f"LoRA trains {lora['trained'] / full['trained']:.1%} of what full tuning does, at "
                    f"{lora['tokens_per_s'] / full['tokens_per_s']:.2f} times its speed and "
                    f"{lora['train_peak_mib'] / full['train_peak_mib']:.2f} of its peak memory.")
    text.append(f"bundles answer as torch does (largest difference <= {LOGITS:g}, all greedy answers equal): "
                f"{verdict(report['equal'])}")
    return "\n".join(text)


def _known(row: dict[str, Any], key: str, form: str) -> str:
    """A number, or nothing where it was not measured."""
    return format(row[key], form) if row.get(key) is not None else ""


def parity(base: str, folder: str, bundle: str, test: str, count: str, new: str) -> dict[str, Any]:
    """The bundle against torch on prompts of the test data: logits on torch's answers, and greedy answers."""
    import numpy as np

    from edgeft.contract.artifact import read_artifact
    from edgeft.contract.tasks import TaskOptions, choose_task
    from edgeft.export.adapters import understand
    from edgeft.export.base import open_base
    from edgeft.export.oracle import Oracle
    from edgeft.export.verify import ask_bundle, ask_torch, compare
    from edgeft.plugins import host

    artifact = read_artifact(Path(folder))
    opened = open_base(folder if artifact.kind == "model" else base)
    oracle = Oracle(opened.load(), opened.eos)
    if artifact.kind != "model":
        learned = understand(artifact, host())
        options = learned.options
        if isinstance(options, TaskOptions):
            artifact, options = choose_task(artifact, options, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            oracle.attach(artifact, learned.method, options)
    prompts = list(dict.fromkeys(line["prompt"] for line in read_lines(Path(test))))
    chosen = prompts[:: max(1, len(prompts) // int(count))][: int(count)]
    tokenizer = opened.tokenizer()
    ids = [tokenizer(prompt + "\n").input_ids for prompt in chosen]
    cases = ask_torch(oracle, ids, int(new))
    used = {} if artifact.kind == "model" else {"tuned": 1.0}
    report = compare(cases, ask_bundle(Path(bundle), {"tuned": (cases, used)}, int(new))[0]["tuned"])
    with oracle.only_base():
        changed = sum(not np.array_equal(oracle.greedy(case.ids, 8), case.tokens[:8]) for case in cases)
    return {"prompts": len(ids), "largest": report["largest_logit_difference"], "equal": report["greedy_equal"],
            "changed": changed}


def bleu(bundle: str, test: str, new: str) -> dict[str, Any]:
    """Corpus BLEU of the bundle's greedy answers, one per different prompt, against all its references."""
    import sacrebleu

    from edgeft.run import load

    lines = list({line["prompt"]: line for line in read_lines(Path(test))}.values())
    lines.sort(key=lambda line: len(line["prompt"]))  # rows of like length share a batch
    model, answers = load(bundle), []
    for at in range(0, len(lines), BATCH):
        part = [line["prompt"] for line in lines[at : at + BATCH]]
        answers += [answer.strip() for answer in model.batch(part, max_tokens=int(new), temperature=0)]
    most = max(len(line["references"]) for line in lines)
    references = [[line["references"][index] if index < len(line["references"]) else None for line in lines]
                  for index in range(most)]
    return {"bleu": sacrebleu.corpus_bleu(answers, references).score, "answers": len(answers)}


CHILDREN = {"parity": parity, "bleu": bleu}

if __name__ == "__main__":
    start(main)
