"""The demo: spoken requests become JSON commands, by an adapter trained, exported and run on this machine."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.files import read_json

MARK = ".edgeft-demo"  # a folder with this in it is ours to replace
SHOWN = 5
TRAINING = ["--epochs", "1", "--r", "32", "--lora-alpha", "64", "--batch-size", "16", "--lr", "3e-3", "--holdout", "0"]


def run_demo(out: Path, device: str) -> None:
    """Train a LoRA on the starter, export it as int4 for a device, and show what it learned on held-out requests."""
    from edgeft.starter import MODEL, PROBE, TEST, TRAIN

    start = time.perf_counter()
    if not (MODEL / "model.safetensors").is_file():
        raise EdgeftError(f"{MODEL}: the starter's weights are not there. `make starter` trains them.")
    _clear(out)
    run, bundle = out / "run", out / "bundle"
    click.echo("The starter is a 3-million-parameter model that edgeft trained from scratch on its own text.\n"
               "It has never seen a voice command. We teach it to turn spoken requests into JSON.\n")
    _edgeft("train", "lora", "--base", "starter", "--data", str(TRAIN), "--probe", str(PROBE), "--device", device,
            "--out", str(run), *TRAINING)
    _edgeft("export", str(run), "--device", device, "--out", str(bundle), "--name", "commands")
    lines = [json.loads(line) for line in TEST.read_text(encoding="utf-8").splitlines()]
    click.echo(f"$ edgeft run {bundle} --prompt ...        ({len(lines)} requests that were held out)\n")
    from edgeft.run import load

    model = load(str(bundle))
    before = _answers(model, lines, {})
    after = _answers(model, lines, {"commands": 1.0})
    _show(lines, before, after)
    _summary(model, run, bundle, lines, before, after, time.perf_counter() - start)


def _answers(model: Any, lines: Sequence[dict[str, Any]], adapters: dict[str, float]) -> list[Any]:
    """The adapter's prompt format for both, so that only the adapter makes the difference."""
    separator = model.load_adapter("commands").prompt.separator
    return [model.generate(line["prompt"] + separator, adapters=adapters, raw=True, max_tokens=64, temperature=0)
            for line in lines]


def exact(lines: Sequence[dict[str, Any]], answers: Sequence[Any]) -> float:
    """Share of answers that are the wanted text to the letter."""
    return sum(answer.strip() == line["completion"] for line, answer in zip(lines, answers, strict=True)) / len(lines)


def _show(lines: Sequence[dict[str, Any]], before: Sequence[Any], after: Sequence[Any]) -> None:
    seen: set[str] = set()
    for line, base, tuned in zip(lines, before, after, strict=True):
        intent = json.loads(line["completion"])["intent"]
        if intent in seen or len(seen) == SHOWN:
            continue
        seen.add(intent)
        mark = click.style("right", fg="green") if tuned.strip() == line["completion"] else \
            click.style(f"wrong, wanted {line['completion']}", fg="red")
        click.echo(f"  {click.style(line['prompt'], bold=True)}")
        click.echo(f"    base     {_short(base)}")
        click.echo(f"    adapter  {tuned.strip()}   {mark}\n")


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat[:70] + ("..." if len(flat) > 70 else "")


def _summary(model: Any, run: Path, bundle: Path, lines: Sequence[dict[str, Any]], before: Sequence[Any],
             after: Sequence[Any], seconds: float) -> None:
    record, manifest = read_json(run / "edgeft.json"), read_json(bundle / "bundle.json")
    report = manifest["parity"]["adapters"]["commands"]
    proof = report.get("exact_activations", report)
    size = {name: entry["size"] / 2**20 for name, entry in manifest["files"].items()}
    adapter = size[manifest["adapters"]["commands"]["file"]]
    decode = sum(len(answer.tokens) for answer in after) / max(sum(answer.decode_seconds for answer in after), 1e-9)
    rows = [
        ("exact match, held out", f"{exact(lines, before):.1%} before, {exact(lines, after):.1%} with the adapter"),
        ("forgetting", f"{record['forgetting']['forgetting']:+.3f} nats per token on text the base knew, with the "
                       "adapter on; 0 with it off"),
        ("size", f"base {sum(size.values()) - adapter:.2f} MiB ({manifest['quant']['kind']}), "
                 f"adapter {adapter:.2f} MiB"),
        ("parity with torch", f"largest logit difference {proof['largest_logit_difference']:.1e}, greedy answers equal "
                              f"{proof['greedy_equal']}/{proof['prompts']}"),
        ("training", f"{record['metrics']['tokens_per_s']:,.0f} tokens/s, {record['metrics']['seconds']:.0f} s"),
        ("decode with adapter", f"{decode:,.0f} tokens/s, "
                                f"{manifest['memory']['verified_peak_mib']:.0f} MiB at the peak"),
        ("the whole demo", f"{seconds:.0f} s"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"  {name.ljust(width)}  {value}")
    click.echo(f'\nTry it:  edgeft run {bundle} --prompt "wake me at half past six tomorrow"\n'
               f"         edgeft chat {bundle}")


def _clear(out: Path) -> None:
    """Replace an older demo; anything else that is there stays, and the demo does not start."""
    if out.exists():
        if not (out / MARK).is_file():
            raise UsageError(f"{out}: already exists and is no demo of edgeft's. Choose another --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARK).touch()


def _edgeft(*arguments: str) -> None:
    """Run a command as a user would, showing it."""
    click.echo("$ " + shlex.join(["edgeft", *arguments]))
    done = subprocess.run([sys.executable, "-m", "edgeft", *arguments], check=False)
    if done.returncode:
        raise EdgeftError(f"`edgeft {arguments[0]}` failed (exit code {done.returncode}); see above.")
    click.echo()
