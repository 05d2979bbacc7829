"""20,000 requests over 50 adapters that come and go, one in a hundred hostile: no wrong answer, memory flat, no leak.

    python benchmarks/soak.py
    python benchmarks/soak.py --requests 600 --adapters 8         to see that it works

Exports stories3m as fp32 without an adapter and writes --adapters files: random low ranks on every linear layer, every
fifth a soft prompt. Each is asked --prompts times, alone: those are its own answers. Then requests drawn at random,
seeded, run --batch at a time, every other batch as asyncio tasks; between batches adapters are unloaded and others
loaded. Hostile ones stand in the same batches: adapters of another base, cut, with NaN, of wrong shapes, without
effect, with numbers so large that answers are none; prompts too long, broken schemas and grammars, unknown names and
options, requests that are cancelled or have no time. Each must end as it should, and nothing else may change:

  wrong          answers that are not the adapter's own, token by token (fp32 has no near ties); of a cancelled request
                 or one without time, tokens that are not the beginning of it
  astray         hostile requests that did not end as they should, and others that failed
  first, last    median of resident memory over the first and the last tenth of the requests after a warm-up tenth
  leaked         file descriptors at the end, all adapters unloaded, beyond those after loading

Ends with exit code 1 where any of these is not what it must be.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import re
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
from hostile import KINDS, SHORT, Hostile, spoil

RANK, PROMPT, NEW = 8, 16, 8
DISTINCT = 0.95  # share of answers that must differ from all others, or the check for wrong ones says little
FLAT = 0.05  # of the first tenth's memory
HOSTILE = 0.01  # of the requests


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", type=Path, default=STORIES)
    parser.add_argument("--adapters", type=int, default=50)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--prompts", type=int, default=3, help="of each adapter")
    parser.add_argument("--batch", type=int, default=8, help="at most; drawn for each batch")
    parser.add_argument("--memory", type=int, default=400, metavar="MIB")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.child:
        verb, *rest = args.child
        print(json.dumps({"write": write, "alone": alone, "serve": serve}[verb](*rest)))
        return
    need(args.base)
    with workspace(args) as work:
        bundle, files, answers = work / "bundle", work / "files", work / "answers.json"
        if not bundle.is_dir():
            say("exporting")
            run([*EDGEFT, "export", args.base, "--device", "cpu-x86_64", "--quant", "fp32", "--out", bundle])
        child(__file__, "write", bundle, files, args.adapters, args.seed)
        say("asking each alone")
        single = child(__file__, "alone", bundle, files, answers, args.prompts)
        say(f"{args.requests} requests, up to {args.batch} at a time")
        served = child(__file__, "serve", bundle, files, answers, args.requests, args.batch, args.memory, args.seed)
    report = {"benchmark": "soak", "machine": machine(), "adapters": args.adapters, "prompts": args.prompts,
              "memory": args.memory, "batch": args.batch, **single, **served}
    print(json.dumps(report, indent=2) if args.json else describe(report))
    sys.exit(0 if all(good for *_, good in checks(report)) else 1)


def checks(report: dict[str, Any]) -> list[tuple[str, object, str, bool]]:
    """What must hold: name, found, target, whether it was met."""
    change = report["last_mib"] / report["first_mib"] - 1
    return [("answers that no other gives", f"{report['distinct']:.1%}", f">= {DISTINCT:.0%}",
             report["distinct"] >= DISTINCT),
            ("wrong answers", report["wrong"], "0", not report["wrong"]),
            ("astray", report["astray"], "0", not report["astray"]),
            ("kinds of hostile requests", f"{report['kinds']} of {len(KINDS)}", "all", report["kinds"] == len(KINDS)),
            ("resident MiB, first and last tenth",
             f"{report['first_mib']:.1f} {report['last_mib']:.1f} ({change:+.1%})", f"within {FLAT:.0%}",
             abs(change) <= FLAT),
            ("leaked file descriptors", report["leaked"], "0", report["leaked"] == 0)]


def describe(report: dict[str, Any]) -> str:
    """The table."""
    rows = [*((name, found, target, verdict(good)) for name, found, target, good in checks(report)),
            ("hostile requests", report["hostile"], "", ""), ("adapters loaded", report["loaded"], "", ""),
            ("peak MiB", f"{report['peak_mib']:.1f}", "", ""),
            ("requests/s", f"{report['requests_per_s']:.1f}", "", "")]
    return "\n".join([f"{report['requests']:,} requests, up to {report['batch']} at a time, over {report['adapters']} "
                      f"adapters, {report['prompts']} prompts each, {PROMPT} + {NEW} tokens, fp32", "",
                      table(["", "found", "target", ""], rows)])


def write(bundle: str, folder: str, count: str, seed: str) -> dict[str, Any]:
    """Random adapters for a bundle, each seeded by its number; every fifth a soft prompt."""
    from edgeft.contract.bundle import read_bundle
    from edgeft.contract.tensors import write_tensors

    opened, where = read_bundle(Path(bundle)), Path(folder)
    where.mkdir(exist_ok=True)
    for number in range(int(count)):
        rng = np.random.default_rng([int(seed), number])
        if number % 5 == 4:
            tensors = {f"prefix.{layer}.{part}": rng.normal(0, 1, (heads, 4, width)).astype(np.float32)
                       for layer, (heads, width) in enumerate(opened.prefix_layers) for part in ("key", "value")}
        else:
            tensors = random_lora(opened, RANK, rng)
        write_tensors(where / f"{number:05d}.safetensors", tensors,
                      {"base_fingerprint": opened.fingerprint, "prompt": "raw"})
    return {}


def options(model: Any, name: str, number: int) -> dict[str, Any]:
    """The number-th question to an adapter: 16 random tokens, as text; answered greedily."""
    ids = np.random.default_rng([int(name), number]).integers(3, model.graphs.vocabulary, PROMPT).tolist()
    return {"prompt": model.tokenizer.decode(ids), "adapters": {name: 1.0}, "raw": True, "temperature": 0,
            "max_tokens": NEW}


def alone(bundle: str, folder: str, out: str, prompts: str) -> dict[str, Any]:
    """Each adapter's own answers, nothing beside them, nothing kept, no drafts; and how many are no other's."""
    from edgeft.run import load

    model, own = load(bundle, keep_prompts=0, lookup=False), {}
    for path in sorted(Path(folder).iterdir()):
        model.load_adapter(path.stem, path)
        own[path.stem] = [model.generate(**options(model, path.stem, number)).tokens for number in range(int(prompts))]
        model.unload_adapter(path.stem)
    Path(out).write_text(json.dumps(own))
    counts = Counter(tuple(tokens) for answers in own.values() for tokens in answers)
    return {"distinct": sum(count == 1 for count in counts.values()) / sum(counts.values())}


class Soak:
    """A model under load: what is loaded, what is asked, and what came of it."""

    def __init__(self, bundle: str, folder: str, answers: str, memory: int, seed: int) -> None:
        from edgeft.run import load

        self.model, self.random = load(bundle, memory=memory), random.Random(seed)
        self.own: dict[str, list[list[int]]] = json.loads(Path(answers).read_text())
        self.files = {path.stem: path for path in sorted(Path(folder).iterdir())}
        self.spoilt = spoil(self.model.bundle, self.files, Path(folder).with_name("hostile"))
        self.loaded: list[str] = []
        self.enough = max(1, len(self.files) * 3 // 4)
        self.counts, self.kinds = Counter[str](), Counter[str]()
        self.hostile = Hostile(self.model, self.random, self.spoilt)

    def change(self) -> None:
        """An adapter goes where there are enough, and another comes: how many are there stays the same, so that what
        they take does too."""
        name = self.random.choice(sorted(set(self.files) - set(self.loaded)))
        if len(self.loaded) >= self.enough:
            self.model.unload_adapter(self.loaded.pop(self.random.randrange(len(self.loaded))))
        self.loaded.append(name)
        self.model.register_adapter(name, self.files[name])
        self.counts["loaded"] += 1

    def draw(self, share: float) -> tuple[str, str, int, dict[str, Any]]:
        """One request: its kind ("" is a good one), whose it is, which prompt, its words."""
        name, number = self.random.choice(self.loaded), self.random.randrange(len(next(iter(self.own.values()))))
        words = options(self.model, name, number)
        if self.random.random() >= share:
            return "", name, number, words
        kind = KINDS[sum(self.kinds.values()) % len(KINDS)]
        self.kinds[kind] += 1
        return kind, name, number, self.hostile.change(kind, words)

    def judge(self, drawn: tuple[str, str, int, dict[str, Any]], found: Any) -> None:
        """Count what came of a request."""
        kind, name, number, _ = drawn
        wanted, good = self.own[name][number], True
        if isinstance(found, list):  # tokens
            good = found == wanted if kind not in SHORT else found == wanted[: len(found)]
            self.counts["wrong"] += not good
        if not self.hostile.ended(kind, found):
            self.counts["astray"] += 1
            good = False
        if not good:
            say(f"{kind or 'good'} request to {name}: {found!r}, not {wanted}"[:400])


def serve(bundle: str, folder: str, answers: str, count: str, batch: str, memory: str, seed: str) -> dict[str, Any]:
    """All requests, in batches of one to `batch`; memory after each batch."""
    from edgeft.contract.memory import rss_mib

    soak, total, resident, done, batches = Soak(bundle, folder, answers, int(memory), int(seed)), int(count), [], 0, 0
    asyncio.run(asyncio.sleep(0))
    before = _descriptors()
    while len(soak.loaded) < soak.enough:
        soak.change()
    began = time.perf_counter()
    while done < total:
        drawn = [soak.draw(max(HOSTILE, 2 * len(KINDS) / total))
                 for _ in range(min(soak.random.randint(1, int(batch)), total - done))]
        found = asyncio.run(soak.hostile.tasks(drawn)) if batches % 2 else soak.hostile.together(drawn)
        for one, ended in zip(drawn, found, strict=True):
            soak.judge(one, ended)
        done, batches = done + len(drawn), batches + 1
        resident += [rss_mib()] * len(drawn)
        if soak.random.random() < 0.3:
            soak.change()
        if batches % 500 == 0:
            say(f"{done:,} done, {resident[-1]:.0f} MiB, {_descriptors().total()} descriptors, "
                f"{soak.counts['wrong']} wrong, {soak.counts['astray']} astray")
    seconds, tenth = time.perf_counter() - began, max(1, total // 10)
    for name in soak.loaded:
        soak.model.unload_adapter(name)
    gc.collect()
    leaked = _descriptors() - before
    for name, count in leaked.items():
        say(f"left open {count} times: {name}")
    return {"requests": total, "wrong": soak.counts["wrong"], "astray": soak.counts["astray"],
            "hostile": sum(soak.kinds.values()), "kinds": len(soak.kinds), "loaded": soak.counts["loaded"],
            "first_mib": statistics.median(resident[tenth : 2 * tenth]),
            "last_mib": statistics.median(resident[-tenth:]), "peak_mib": peak_mib(),
            "leaked": leaked.total() + (before - _descriptors()).total(), "requests_per_s": total / seconds}


def _descriptors() -> Counter[str]:
    """What this process has open, by name."""
    found = Counter[str]()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            found[re.sub(r"\d{4,}", "N", os.readlink(f"/proc/self/fd/{number}"))] += 1
    return found


if __name__ == "__main__":
    start(main)
