"""Bundles on arm64: an emulated Debian with the plain `edgeft` wheel and no torch answers as this machine does.

    make test-arm64
    python benchmarks/arm64.py --prompts 2 --tokens 8      to see that it works

Builds the root once (arm64_root.py: takes root's rights, downloads 100 MB), installs the wheel of this tree there,
and prints what that takes on the disk. Then a bundle of stories3m with a LoRA and a soft prompt (as places.py makes it)
is packed into one file here, installed from it there, and both are asked the same. fp32 must give every token; where
one differs, the margin between the two tokens is printed, and the exit code is 1. On int4 the agreement counts. At the
end the adapters travel alone: the base is installed there without them, and each is put beside it.

A program and not a test of pytest's: it needs root, a network, and minutes of emulation.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import arm64_root
import numpy as np
import place_arm64
import place_python
from arm64_root import PYTHON, enter
from common import E2E, EDGEFT, STORIES, arguments, fail, machine, need, run, start, table, workspace
from places import ADAPTERS, DEVICE, STORIES_PROBE, ask, compare, export, questions, train

CLI = [PYTHON, "-m", "edgeft"]
SIZES = """import importlib.metadata, importlib.util, json, pathlib, platform, sysconfig
def size(name):
    return sum(file.locate().stat().st_size for file in importlib.metadata.files(name) if file.locate().is_file())
names = sorted({item.name for item in importlib.metadata.distributions()} - {"pip", "setuptools"})
print(json.dumps({"edgeft": size("edgeft"), "all": sum(map(size, names)), "packages": names,
                  "torch": importlib.util.find_spec("torch") is not None, "arch": platform.machine(),
                  "python": platform.python_version()}))
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60, help="of training, for each adapter")
    args = parser.parse_args()
    need(STORIES, E2E, STORIES_PROBE)
    wheel = set_up()
    report: dict[str, Any] = {"benchmark": "arm64", "machine": machine(), "emulated": not arm64_root.native(),
                              "prompts": args.prompts, "tokens": args.tokens, "wheel": wheel.stat().st_size,
                              **json.loads(enter([PYTHON, "-c", SIZES])), "rows": [], "differences": []}
    with workspace(args) as work:
        train(work, args.steps)
        for quant in ("fp32", "int4"):
            bundle = export(work, DEVICE, quant)
            report[f"verified_{quant}"] = move(work, bundle)
            prompts = questions(bundle, args.prompts)
            answers = {name: ask(name, place, bundle, prompts, args.tokens)
                       for name, place in (("python", place_python), ("arm64", place_arm64))}
            report["rows"] += [row for row in compare(DEVICE, quant, answers) if row["place"] == "arm64"]
            if quant == "fp32":
                report["differences"] = margins(bundle, prompts, answers)
    print(json.dumps(report, indent=2) if args.json else describe(report))
    if report["torch"]:
        fail("torch is in the root.")
    wrong = [row for row in report["rows"] if not row["good"]]
    if wrong:
        fail("; ".join(f"{row['quant']}, {row['adapter'] or 'no adapter'}: {row['why']}" for row in wrong))


def set_up() -> Path:
    """The root with this tree's wheel in it; returns the wheel."""
    arm64_root.need_rights()
    arm64_root.register()
    arm64_root.build()
    wheel = arm64_root.build_wheel()
    arm64_root.install(wheel)
    return wheel


def move(work: Path, bundle: Path) -> dict[str, Any]:
    """Install a bundle in the root from packed files: whole, and its base with each adapter put beside it."""
    packs = work / f"packs-{bundle.name}"
    shutil.rmtree(packs, ignore_errors=True)
    packs.mkdir()
    run([*EDGEFT, "pack", bundle, "--out", packs / "whole.edgeft"])
    run([*EDGEFT, "pack", bundle, "--out", packs / "base.edgeft", "--without-adapters"])
    for name in ADAPTERS:
        run([*EDGEFT, "pack", bundle, "--out", packs / f"{name}.edgeft", "--adapter", name])
    there = {packs: "/packs"}
    for name in ("whole", "base"):
        enter([*CLI, "install", f"/packs/{name}.edgeft"], there)
    for name in ADAPTERS:
        enter([*CLI, "install", f"/packs/{name}.edgeft", "--to", "/packs/base"], there)
    found = {name: json.loads(enter([*CLI, "verify", f"/packs/{name}", "--json"], there)) for name in ("whole", "base")}
    return {name: {key: result[key] for key in ("adapters", "replayed", "agreement")} for name, result in found.items()}


def margins(bundle: Path, prompts: list[list[int]], answers: dict[str, Any]) -> list[dict[str, Any]]:
    """Where an answer differs: the logits that both places give the two tokens, and the difference between these."""
    found = []
    for adapter, wanted in answers["python"].items():
        for prompt, one, other in zip(prompts, wanted, answers["arm64"][adapter], strict=True):
            if one["tokens"] == other["tokens"]:
                continue
            pairs = enumerate(zip(one["tokens"], other["tokens"], strict=False))
            at = next((index for index, (left, right) in pairs if left != right), None)
            if at is None:
                continue
            question = [{"prompt_tokens": [*prompt, *one["tokens"][:at]], "adapter": adapter or None}]
            logits = [np.array(place.answers(bundle, question, 1)[0]["logits"])
                      for place in (place_python, place_arm64)]
            left, right = one["tokens"][at], other["tokens"][at]
            found.append({"adapter": adapter, "token": at, "here": left, "there": right,
                          "margins": [float(part[left] - part[right]) for part in logits]})
    return found


def describe(report: dict[str, Any]) -> str:
    """What is on the disk, and the table."""
    mib = 2**20
    rows = [(row["quant"], row["adapter"] or "none", f"{row['equal']}/{row['answers']}",
             f"{100 * row['agreement']:.1f} %", f"{row['difference']:.1e}", row["why"]) for row in report["rows"]]
    moved = [f"{quant}, {name}: adapters {', '.join(found['adapters'])}, {found['replayed']} recorded answers asked "
             f"again, {found['agreement']:.1%} of tokens equal" for quant in ("fp32", "int4")
             for name, found in report[f"verified_{quant}"].items()]
    return "\n".join([
        f"{report['arch']}, Python {report['python']}{', emulated' if report['emulated'] else ''}",
        f"wheel      {report['wheel'] / 1024:,.0f} KiB",
        f"installed  {report['edgeft'] / mib:.1f} MiB, with all that it needs {report['all'] / mib:.1f} MiB: "
        f"{', '.join(report['packages'])}",
        f"torch      {'IS THERE' if report['torch'] else 'is not there'}", "",
        f"{report['prompts']} prompts, {report['tokens']} greedy tokens, against this machine", "",
        table(["weights", "adapter", "equal", "agreement", "difference", ""], rows), "",
        *(f"adapter {item['adapter'] or 'none'}, token {item['token']}: {item['here']} here, {item['there']} there, "
          f"margin {item['margins'][0]:.1e} here, {item['margins'][1]:.1e} there" for item in report["differences"]),
        "installed from packed files, whole and piece by piece:", *moved])


if __name__ == "__main__":
    start(main)
