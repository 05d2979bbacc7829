"""Bundles in every place that they run: the same greedy tokens, without an adapter, with a LoRA, with a soft prompt.

    python benchmarks/places.py
    python benchmarks/places.py --only python,arm64 --tokens 8 --prompts 2      to see that it works

Trains a LoRA and a soft prompt on e2e, exports stories3m with both for cpu-x86_64, as fp32 and as int4, and asks every
place the same prompts, as token ids: half from e2e/test, half beginnings of tinystories/probe. A place is a module
place_NAME.py beside this one with `missing()`, which says what it lacks here, and `answers(bundle, questions, tokens)`;
one that takes no graphs for cpu-x86_64 names its EXPORT_DEVICE, and gets a bundle of the same adapters for that one.
place_python is the runner on this machine's processor, with which all are compared on the same bundle:

  equal        answers of fp32 that are the same token by token; fewer than all end the program with exit code 1
  agreement    share of int4's tokens that are the same up to the first that is not: int8 activations round
               differently on other processors, and near ties fall either way
  difference   the largest of any logit behind the prompt

An adapter must also change the answers: where it leaves all of them as the bare base gives them, that ends with 1, too.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Container, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import place_python
from common import (
    E2E,
    EDGEFT,
    SHARED,
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

REFERENCE, DEVICE = "python", "cpu-x86_64"
STORIES_PROBE = SHARED / "data" / "tinystories" / "probe.jsonl"
ADAPTERS = {"lora": ["lora", "--rank", "8"], "soft": ["prompt_tuning"]}
Answers = dict[str, list[dict[str, Any]]]  # by adapter ("" for none)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", help="places to ask, with commas between (python is always among them)")
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60, help="of training, for each adapter")
    parser.add_argument("--quants", default="fp32,int4")
    args = parser.parse_args()
    need(STORIES, E2E, STORIES_PROBE)
    places = find_places(args.only.split(",") if args.only else None)
    lacking = {name: place.missing() for name, place in places.items() if place.missing()}
    rows: list[dict[str, Any]] = []
    with workspace(args) as work:
        train(work, args.steps)
        for device, names in by_device(places, lacking).items():
            for quant in args.quants.split(","):
                bundle = export(work, device, quant)
                prompts = questions(bundle, args.prompts)
                rows += compare(device, quant, {name: ask(name, places[name], bundle, prompts, args.tokens)
                                                for name in names})
    report = {"benchmark": "places", "machine": machine(), "prompts": args.prompts, "tokens": args.tokens,
              "not_here": lacking, "rows": rows}
    print(json.dumps(report, indent=2) if args.json else describe(report))
    wrong = [row for row in report["rows"] if not row["good"]]
    if wrong:
        fail("; ".join(f"{row['place']}, {row['quant']}, {row['adapter'] or 'no adapter'}: {row['why']}"
                       for row in wrong))


def find_places(only: Sequence[str] | None) -> dict[str, ModuleType]:
    """The modules place_*.py, the reference first."""
    names = sorted(path.stem.removeprefix("place_") for path in Path(__file__).parent.glob("place_*.py"))
    unknown = sorted(set(only or ()) - set(names))
    if unknown:
        fail(f"no such place: {', '.join(unknown)}. Known: {', '.join(names)}.")
    wanted = [REFERENCE, *(name for name in names if name != REFERENCE and (only is None or name in only))]
    return {name: importlib.import_module(f"place_{name}") for name in wanted}


def by_device(places: dict[str, ModuleType], lacking: Container[str]) -> dict[str, list[str]]:
    """The places that are here, by the device whose bundles they take, the reference first for each."""
    found: dict[str, list[str]] = {}
    for name, place in places.items():
        if name not in lacking:
            names = found.setdefault(getattr(place, "EXPORT_DEVICE", DEVICE), [REFERENCE])
            names += [name] if name not in names else []
    return found


def train(work: Path, steps: int) -> None:
    """The adapters, once for all bundles."""
    for name, words in ADAPTERS.items():
        if (work / name).exists():
            continue
        say(f"training {name}")
        run([*EDGEFT, "train", *words, "--base", STORIES, "--data", E2E / "train.jsonl", "--max-steps", steps,
             "--out", work / name])


def export(work: Path, device: str, quant: str) -> Path:
    """One bundle with both adapters."""
    bundle = work / f"{device}-{quant}"
    if not bundle.exists():
        say(f"exporting {quant} for {device}")
        run([*EDGEFT, "export", work / "lora", "--device", device, "--quant", quant, "--name", "lora", "--out", bundle])
        run([*EDGEFT, "add", bundle, work / "soft", "--name", "soft"])
    return bundle


def questions(bundle: Path, count: int) -> list[list[int]]:
    """Prompts as token ids: lines of e2e/test as training joined them, and beginnings of stories."""
    from edgeft.run import load

    model = load(bundle, provider=place_python.PROVIDER)
    half = count // 2
    texts = [line["prompt"] + "\n" for line in read_lines(E2E / "test.jsonl")[: count - half]]
    texts += [line["text"][:80] for line in read_lines(STORIES_PROBE)[:half]]
    return [model.encode(text, {}, raw=True) for text in texts]


def ask(name: str, place: ModuleType, bundle: Path, prompts: Sequence[list[int]], tokens: int) -> Answers:
    """A place's answers, without an adapter and with each kind that it takes."""
    taken = ["", *(adapter for adapter in ADAPTERS if adapter in getattr(place, "ADAPTERS", ADAPTERS))]
    say(f"{bundle.name}: asking {name}")
    asked = [{"prompt_tokens": prompt, "adapter": adapter or None} for adapter in taken for prompt in prompts]
    given = place.answers(bundle, asked, tokens)
    return {adapter: given[index * len(prompts) : (index + 1) * len(prompts)] for index, adapter in enumerate(taken)}


def compare(device: str, quant: str, places: dict[str, Answers]) -> list[dict[str, Any]]:
    """A row for every place and adapter, of one bundle."""
    rows = []
    for name, answers in places.items():
        for adapter, given in answers.items():
            wanted = places[REFERENCE][adapter]
            pairs = list(zip(wanted, given, strict=True))
            equal = sum(one["tokens"] == other["tokens"] for one, other in pairs)
            difference = max(float(np.abs(np.subtract(one["logits"], other["logits"])).max()) for one, other in pairs)
            idle = bool(adapter) and all(one["tokens"] == other["tokens"]
                                         for one, other in zip(answers[""], given, strict=True))
            why = "the adapter changes nothing" if idle else ""
            if not why and quant == "fp32" and equal < len(pairs):
                why = f"{len(pairs) - equal} of {len(pairs)} answers differ"
            rows.append({"place": name, "device": device, "quant": quant, "adapter": adapter, "answers": len(pairs),
                         "equal": equal, "difference": difference, "good": not why, "why": why,
                         "agreement": agreement(*([answer["tokens"] for answer in side]
                                                  for side in (wanted, given)))})
    return rows


def describe(report: dict[str, Any]) -> str:
    """The table, and what was not to be had."""
    rows = [(row["place"], row["device"], row["quant"], row["adapter"] or "none", f"{row['equal']}/{row['answers']}",
             f"{100 * row['agreement']:.1f} %", f"{row['difference']:.1e}", row["why"]) for row in report["rows"]]
    lines = [f"{report['prompts']} prompts, {report['tokens']} greedy tokens", "",
             table(["place", "device", "weights", "adapter", "equal", "agreement", "difference", ""], rows)]
    return "\n".join([*lines, *(f"not here: {name}: {why}" for name, why in report["not_here"].items())])


if __name__ == "__main__":
    start(main)
