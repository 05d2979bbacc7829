"""A thousand adapters on one small bundle within a memory bound: no wrong answer, and resident memory stays flat.

    python benchmarks/adapters.py
    python benchmarks/adapters.py --adapters 40 --requests 400 --memory 160      to see that it works

Exports stories3m as int4 without an adapter, writes --adapters random low-rank files on every linear layer, registers
them all, and asks each once, alone: that is its own answer. Then, in a process whose memory is bounded by --memory,
draws --requests of them at random, seeded, and runs them --batch at a time:

  wrong          answers that are not the adapter's own, token by token; any ends the program with exit code 1
  near ties      int4 rounds activations by row and batch: a token may be the adapter's second choice where that is
                 within a hair of the first, by the adapter's own logits, alone; float32 has none
  first, last    median of resident memory over the first and the last tenth of the requests after a warm-up tenth
  loads          files opened and matrices packed anew, since the memory does not hold them all
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    EDGEFT,
    STORIES,
    arguments,
    child,
    follows,
    machine,
    need,
    peak_mib,
    random_lora,
    run,
    say,
    start,
    table,
    verdict,
    workspace,
)

RANK, PROMPT, NEW = 8, 16, 8
DISTINCT = 0.99  # share of answers that must differ from all others, or the check for wrong ones says little
FLAT = 1.05  # last tenth's memory by the first's


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", type=Path, default=STORIES)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--memory", type=int, default=400, metavar="MIB")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--draw", default="uniform", choices=["uniform", "zipf"])
    parser.add_argument("--quant", default="int4", choices=["int4", "fp32"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-install", action="store_true", help="measure the bundle as it was exported")
    args = parser.parse_args()
    if args.child:
        verb, *rest = args.child
        print(json.dumps({"write": write, "alone": alone, "serve": serve}[verb](*rest)))
        return
    need(args.base)
    with workspace(args) as work:
        say("exporting")
        bundle, files, answers = work / "bundle", work / "files", work / "answers.json"
        if not bundle.is_dir():
            run([*EDGEFT, "export", args.base, "--device", "cpu-x86_64", "--quant", args.quant, "--out",
                 bundle])
        if not args.no_install:
            run([*EDGEFT, "install", bundle])
        say(f"writing {args.adapters} adapters")
        written = child(__file__, "write", bundle, files, args.adapters, args.seed)
        say("asking each alone")
        single = child(__file__, "alone", bundle, files, answers)
        say(f"{args.requests} requests, {args.batch} at a time")
        served = child(__file__, "serve", bundle, files, answers, args.requests, args.memory, args.batch, args.draw,
                       args.seed)
    report = {"benchmark": "adapters", "machine": machine(), "adapters": args.adapters, "memory": args.memory,
              "batch": args.batch, "draw": args.draw, "quant": args.quant, **written, **single, **served}
    print(json.dumps(report, indent=2) if args.json else describe(report))
    sys.exit(1 if report["wrong"] or min(report["distinct"], report["told_apart"]) < DISTINCT else 0)


def describe(report: dict[str, Any]) -> str:
    """The table."""
    rows = [("answers that no other adapter gives", f"{report['distinct']:.1%}", f">= {DISTINCT:.0%}",
             verdict(report["distinct"] >= DISTINCT)),
            ("another's answer is found out", f"{report['told_apart']:.1%}", f">= {DISTINCT:.0%}",
             verdict(report["told_apart"] >= DISTINCT)),
            ("near ties", report["ties"], "", ""),
            ("wrong answers", report["wrong"], "0", verdict(not report["wrong"])),
            ("resident MiB, first tenth", f"{report['first_mib']:.1f}", "", ""),
            ("resident MiB, last tenth", f"{report['last_mib']:.1f}", f"<= {FLAT:g} times the first",
             verdict(report["last_mib"] <= FLAT * report["first_mib"])),
            ("peak MiB", f"{report['peak_mib']:.1f}", f"<= {report['memory']}",
             verdict(report["peak_mib"] <= report["memory"])),
            ("files opened", f"{report['opened']:,}", "", ""), ("matrices packed", f"{report['packed']:,}", "", ""),
            ("requests/s", f"{report['requests_per_s']:.1f}", "", ""),
            ("new tokens/s", f"{report['tokens_per_s']:.1f}", "", "")]
    return "\n".join([f"{report['adapters']:,} adapters of rank {RANK} ({report['adapter_mib']:.2f} MiB each), "
                      f"{report['requests']:,} requests ({report['draw']}), {report['batch']} at a time, {PROMPT} + "
                      f"{NEW} tokens, {report['quant']}", "", table(["", "found", "target", ""], rows)])


def write(bundle: str, folder: str, count: str, seed: str) -> dict[str, float]:
    """Random adapters on every linear layer of a bundle, each seeded by its number."""
    from edgeft.contract.bundle import read_bundle
    from edgeft.contract.tensors import write_tensors

    opened, where = read_bundle(Path(bundle)), Path(folder)
    where.mkdir(exist_ok=True)
    for number in range(int(count)):
        path = where / f"{number:05d}.safetensors"
        if path.is_file():
            continue
        tensors = random_lora(opened, RANK, np.random.default_rng([int(seed), number]))
        write_tensors(path, tensors, {"base_fingerprint": opened.fingerprint, "prompt": "raw"})
    return {"adapter_mib": path.stat().st_size / 2**20}


def registered(bundle: str, folder: str, **settings: Any) -> tuple[Any, list[str]]:
    """The model with every adapter offered, none opened; and their names."""
    from edgeft.run import load

    model, names = load(bundle, keep_prompts=0, **settings), []
    for path in sorted(Path(folder).iterdir()):
        model.register_adapter(path.stem, path)
        names.append(path.stem)
    return model, names


def request(model: Any, name: str, number: int) -> Any:
    """What is asked of an adapter: 16 tokens of its own; an end token does not end the answer."""
    from edgeft.run.request import Request
    from edgeft.run.sampling import Sampler

    ids = np.random.default_rng(number).integers(3, model.graphs.vocabulary, PROMPT).tolist()
    return Request(ids, {name: 1.0}, Sampler(temperature=0), model.tokenizer, frozenset(), model.context,
                   max_tokens=NEW, lookup=False)


def answers_of(model: Any, requests: list[Any]) -> dict[int, list[int]]:
    """Tokens of each request, by its identity."""
    from edgeft.run import Generation

    found = {}
    for asked, piece in model.engine.run(requests):
        if isinstance(piece, Exception):
            raise piece
        if isinstance(piece, Generation):
            found[id(asked)] = piece.tokens
    return found


def alone(bundle: str, folder: str, out: str) -> dict[str, float]:
    """Each adapter's own answer, the only request in its batch; and how surely one answer is told from another."""
    model, names = registered(bundle, folder)
    own, same, apart, before = {}, {}, 0, None
    for number, name in enumerate(names):
        for found, place in ((own, number), (same, 0)):
            asked = request(model, name, place)
            found[name] = answers_of(model, [asked])[id(asked)]
        apart += before is None or not follows(model, request(model, name, 0).prompt, {name: 1.0}, same[before])
        before = name
        model.unload_adapter(name)
    Path(out).write_text(json.dumps(own))
    counts = Counter(map(tuple, same.values()))
    return {"distinct": sum(count == 1 for count in counts.values()) / len(names), "told_apart": apart / len(names)}


def serve(bundle: str, folder: str, answers: str, count: str, memory: str, batch: str, draw: str,
          seed: str) -> dict[str, Any]:
    """Requests at random within the bound, each answer compared with its adapter's own."""
    from edgeft.contract.memory import rss_mib

    model, names = registered(bundle, folder, memory=int(memory))
    loads = _count_loads(model)
    own, total, size = json.loads(Path(answers).read_text()), int(count), int(batch)
    drawn, resident, wrong, ties = _drawn(draw, int(seed), len(names), total), [], 0, 0
    start = time.perf_counter()
    for at in range(0, total, size):
        requests = [(names[number], request(model, names[number], number)) for number in drawn[at : at + size]]
        found = answers_of(model, [asked for _, asked in requests])
        for name, asked in requests:
            if found[id(asked)] != own[name]:
                near = follows(model, asked.prompt, asked.adapters, found[id(asked)])
                ties, wrong = ties + near, wrong + (not near)
        resident += [rss_mib()] * len(requests)
        if at % 1000 < size:
            say(f"{at:,} done, {resident[-1]:.0f} MiB, {wrong} wrong")
    seconds, tenth = time.perf_counter() - start, max(1, total // 10)
    return {"requests": total, "wrong": wrong, "ties": ties, "peak_mib": peak_mib(),
            "first_mib": statistics.median(resident[tenth : 2 * tenth]),
            "last_mib": statistics.median(resident[-tenth:]),
            "requests_per_s": total / seconds, "tokens_per_s": NEW * total / seconds, **loads}


def _drawn(kind: str, seed: int, names: int, total: int) -> list[int]:
    """Which adapters are asked for; zipf: the k-th likeliest with weight 1/k."""
    weights = np.ones(names) if kind == "uniform" else 1 / np.arange(1, names + 1)
    chosen: list[int] = np.random.default_rng(seed).choice(names, total, p=weights / weights.sum()).tolist()
    return chosen


def _count_loads(model: Any) -> dict[str, int]:
    """Counters of files opened and matrices packed, which go on counting."""
    from edgeft.run import shelf

    counts, open_adapter, pack = {"opened": 0, "packed": 0}, shelf.open_adapter, model.shelf._packed

    def opening(*words: Any) -> Any:
        counts["opened"] += 1
        return open_adapter(*words)

    def packing(*words: Any) -> Any:
        counts["packed"] += 1
        return pack(*words)

    shelf.open_adapter, model.shelf._packed = opening, packing
    return counts


if __name__ == "__main__":
    start(main)
