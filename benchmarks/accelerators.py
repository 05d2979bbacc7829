"""Bundles for accelerators and for OpenVINO: what their providers take by their tables, and that the answers are equal.

    python benchmarks/accelerators.py

Trains a LoRA and a soft prompt on ../shared's stories3m for some steps, and exports that for each device in fp32 and in
the quantization of its file and int4. Per bundle:

  placed         share of the matrix work (multiply-adds of one pass) that the provider takes by its table, the lowest
                 of the bundle's graphs; below 95 % the export refuses, and so it says here
  nodes          of those graphs together, placed and in all; under the table what falls back
  MiB            of the whole folder, and of the weights
  tokens         greedy answers to --prompts prompts, bare, with the LoRA and with the soft prompt, equal to those of
                 the dynamic bundle for cpu-x86_64; on a grid those of the same grid with exact activations
  OpenVINO       the same on its CPU plugin, where `make openvino` has been run, and the nodes that it was given;
                 bundles for other providers are not tried there. Activations as they are; left to itself the plugin
                 rounds them to int8 before a product with int4 weights: a line below the table
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import place_openvino
import place_python
from common import E2E, EDGEFT, STORIES, agreement, arguments, machine, need, run, say, start, table, workspace

DEVICES = ("intel-cpu-openvino", "intel-npu", "snapdragon-8-gen-3", "apple-silicon")
ADAPTERS = (None, "menu", "soft")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--devices", nargs="+", default=list(DEVICES))
    parser.add_argument("--quants", nargs="+", default=["fp32", "int4"])
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    need(STORIES, E2E)
    with workspace(args) as work:
        say("training a LoRA and a soft prompt")
        for method, name in (("lora", "menu"), ("prompt_tuning", "soft")):
            run([*EDGEFT, "train", method, "--base", STORIES, "--data", E2E / "train.jsonl", "--out", work / name,
                 "--max-steps", args.steps])
        rows = [measure(work, device, quant, args) for device in args.devices for quant in args.quants]
    report = {"benchmark": "accelerators", "machine": machine(), "base": STORIES.name, "prompts": args.prompts,
              "new_tokens": args.new_tokens, "openvino": place_openvino.missing() or "there", "rows": rows}
    print(json.dumps(report, indent=2) if args.json else describe(report))


def measure(work: Path, device: str, quant: str, args: Any) -> dict[str, Any]:
    """One bundle: exported, its table read, and asked."""
    say(f"{device}, {quant}")
    bundle, row = work / f"{device}-{quant}", {"device": device, "quant": quant}
    refused = export(work, device, quant, bundle)
    if refused:
        return {**row, "refused": refused}
    manifest = json.loads((bundle / "bundle.json").read_text())
    placement = manifest["placement"]
    block = manifest["quant"].get("block", 0)
    expected = reference(work, quant, block, args)
    questions = ask_for(work, args.prompts)
    row |= {"provider": placement["provider"], "placed": min(item["share"] for item in placement["graphs"].values()),
            "nodes": [sum(item[key] for item in placement["graphs"].values()) for key in ("placed", "nodes")],
            "fallback": {file: item["fallback"] for file, item in placement["graphs"].items()},
            "files_mib": mib(sum(entry["size"] for entry in manifest["files"].values())),
            "weights_mib": mib(manifest["files"]["model.onnx.data"]["size"]),
            "cpu": compare(expected, place_python.answers(bundle, questions, args.new_tokens))}
    if placement["provider"] == place_openvino.PROVIDER and not place_openvino.missing():
        found = place_openvino.ask(bundle, questions, args.new_tokens)
        row["openvino"] = {**compare(expected, found["answers"]), "placement": found["placement"]}
        if block:
            other = place_openvino.ask(bundle, questions, args.new_tokens, rounded=True)["answers"]
            row["rounded"] = {**compare(expected, other), "agreement": same(expected, other)}
    return row


def export(work: Path, device: str, quant: str, bundle: Path) -> str:
    """Export with the LoRA, add the soft prompt; what was said where it was refused."""
    done = subprocess.run([*EDGEFT, "export", work / "menu", "--device", device, "--quant", quant, "--out", bundle],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.rpartition("edgeft: ")[2].strip()
    run([*EDGEFT, "add", bundle, work / "soft", "--name", "soft"])
    return ""


def reference(work: Path, quant: str, block: int, args: Any) -> place_openvino.Answers:
    """The dynamic bundle's answers on the same weights, activations as they are."""
    name = work / f"reference-{quant}-{block}"
    if not name.is_dir():
        device = work / "reference.toml"
        text = (Path(__file__).parents[1] / "devices" / "cpu-x86_64.toml").read_text()
        device.write_text(text.replace("block = 128", f"block = {block or 128}"))
        run([*EDGEFT, "export", work / "menu", "--device", device, "--quant", quant, "--out", name])
        run([*EDGEFT, "add", name, work / "soft", "--name", "soft"])
        if quant.startswith("int"):
            make_exact(name)
    return place_python.answers(name, ask_for(work, args.prompts), args.new_tokens)


def make_exact(bundle: Path) -> None:
    """Turn off the rounding of activations to int8, which graphs in standard operators do not have."""
    from edgeft.export.verify import exact_copy

    with exact_copy(bundle) as copy:
        for path in copy.glob("*"):
            if path.is_file():
                (bundle / path.name).unlink()
                shutil.copy2(path, bundle / path.name)


def ask_for(work: Path, count: int) -> list[dict[str, Any]]:
    """The same prompts for each adapter, some of them longer than a chunk."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(STORIES / "tokenizer.json"))
    lines = [json.loads(line)["prompt"] for line in (E2E / "test.jsonl").read_text().splitlines()[:4 * count]]
    texts = [" ".join(lines[index : index + 1 + index % 4]) for index in range(0, 4 * count, 4)]
    return [{"prompt_tokens": tokenizer.encode(text).ids, "adapter": adapter} for adapter in ADAPTERS
            for text in texts]


def compare(expected: place_openvino.Answers, found: place_openvino.Answers) -> dict[str, Any]:
    """Equal answers, and the largest difference of a logit after the prompt."""
    pairs = list(zip(expected, found, strict=True))
    return {"equal": sum(left["tokens"] == right["tokens"] for left, right in pairs), "of": len(pairs),
            "largest_logit_difference": max(abs(a - b) for left, right in pairs
                                            for a, b in zip(left["logits"], right["logits"], strict=True))}


def same(expected: place_openvino.Answers, found: place_openvino.Answers) -> float:
    """Share of tokens that are equal up to the first that is not, which all later ones follow from."""
    return round(agreement(*([item["tokens"] for item in answers] for answers in (expected, found))), 4)


def mib(size: int) -> float:
    return round(size / 2**20, 2)


def describe(report: dict[str, Any]) -> str:
    """The table, what falls back, and what was refused."""
    made = [row for row in report["rows"] if "refused" not in row]
    lines = [f"{report['base']}, {report['prompts']} prompts x {len(ADAPTERS)} adapters, {report['new_tokens']} tokens",
             f"OpenVINO: {report['openvino']}", ""]
    lines.append(table(["device", "quant", "placed", "nodes", "MiB", "weights", "tokens on CPU", "logits", "OpenVINO",
                        "logits", "nodes on it"], [columns(row) for row in made]))
    for row in made:
        for file, items in row["fallback"].items():
            fallen = ", ".join(f"{item['nodes']} {item['operator']} ({item['reason']})" for item in items)
            if fallen:
                share = sum(item["share"] for item in items)
                lines.append(f"{row['device']} {row['quant']} {file}, {share:.1%} of the matrix work falls back: "
                             f"{fallen}")
        if "rounded" in row:
            found = row["rounded"]
            lines.append(f"{row['device']} {row['quant']}, activations rounded by OpenVINO: "
                         f"{found['equal']}/{found['of']} answers equal, {found['agreement']:.1%} of the tokens up to "
                         f"the first other one, largest logit difference {found['largest_logit_difference']:.1e}")
    for row in report["rows"]:
        if "refused" in row:
            lines.append(f"{row['device']} {row['quant']}: refused\n{row['refused']}")
    return "\n".join(lines)


def columns(row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    there = row.get("openvino")
    on_it = " ".join(f"{counts.get(place_openvino.PROVIDER, 0)}/{sum(counts.values())}"
                     for counts in there["placement"].values()) if there else "-"
    return [row["device"], row["quant"], f"{row['placed']:.1%}", "/".join(map(str, row["nodes"])),
            f"{row['files_mib']}", f"{row['weights_mib']}", *equal(row["cpu"]), *equal(there), on_it]


def equal(found: dict[str, Any] | None) -> list[str]:
    """Equal answers and the largest difference, or dashes."""
    return [f"{found['equal']}/{found['of']}", f"{found['largest_logit_difference']:.1e}"] if found else ["-", "-"]


if __name__ == "__main__":
    start(main)
