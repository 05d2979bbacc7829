"""Each byte of a small bundle flipped, and each file cut at every length: how many of them are refused.

    python benchmarks/every_byte.py [--bundle BUNDLE] [--step N] [--load-step N]

Without --bundle a random base of some KiB is exported, a LoRA beside it. `verify` means all that `edgeft verify` reads
and compares; `load` means loading and asking, so that graphs are opened too where nothing was refused before. Both must
refuse every time, without a crash and without an answer. Damage lies in a copy under /dev/shm where there is one.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from common import EDGEFT, arguments, machine, run, say, start, table, verdict, workspace

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--step", type=int, default=1, help="verify every n-th byte and length")
    parser.add_argument("--load-step", type=int, default=97, help="load at every n-th of these; a load takes longer")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with (
        workspace(args) as work,
        tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as fast,
    ):
        bundle = args.bundle or make(work)
        copy = Path(fast, "bundle")
        shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("prepared"))
        rows = damage(copy, args.step, args.load_step, args.seed)
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key != "file"}
    report = {"benchmark": "every_byte", "machine": machine(), "rows": rows, "total": total}
    print(json.dumps(report, indent=2) if args.json else describe(report))
    if total["missed"]:
        sys.exit(1)


def make(work: Path) -> Path:
    """A bundle of a random base: nothing in it says anything, and every file is there."""
    sys.path.insert(0, str(ROOT))
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.conftest import write_tokenizer

    say("making a bundle")
    base = work / "base"
    base.mkdir()
    tokenizer = write_tokenizer(base)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "llama",
            vocab_size=tokenizer.get_vocab_size(),
            bos_token_id=1,
            eos_token_id=2,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            max_position_embeddings=64,
        )
    )
    model.save_pretrained(base)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    tuned.save_pretrained(work / "lora")
    run(
        [
            *EDGEFT,
            "export",
            work / "lora",
            "--base",
            base,
            "--device",
            "cpu-x86_64",
            "--quant",
            "fp32",
            "--name",
            "lora",
            "--out",
            work / "bundle",
        ]
    )
    return work / "bundle"


def damage(folder: Path, step: int, load_step: int, seed: int) -> list[dict[str, Any]]:
    """For each file how often it was damaged, and how often that passed."""
    from edgeft.contract.bundle import MANIFEST, read_bundle

    draw, rows = random.Random(seed), []
    for name in (MANIFEST, *read_bundle(folder).manifest["files"]):
        whole, started = (folder / name).read_bytes(), time.monotonic()
        row = {"file": name, "bytes": len(whole), "flipped": 0, "cut": 0, "loaded": 0, "missed": 0}
        for place in range(0, len(whole), step):
            flipped = whole[:place] + bytes([whole[place] ^ draw.randrange(1, 256)]) + whole[place + 1 :]
            for kind, data in (("flipped", flipped), ("cut", whole[:place])):
                (folder / name).write_bytes(data)
                row[kind] += 1
                row["missed"] += verify_takes(folder)
                if not place // step % load_step:
                    row["loaded"] += 1
                    row["missed"] += load_takes(folder)
        (folder / name).write_bytes(whole)
        assert verify_takes(folder)
        row["seconds"] = round(time.monotonic() - started)
        say(f"{name}: {row}")
        rows.append(row)
    return rows


def verify_takes(folder: Path) -> bool:
    """Whether what `edgeft verify` does first finds nothing."""
    from edgeft.contract.bundle import read_bundle
    from edgeft.contract.errors import EdgeftError

    try:
        read_bundle(folder).check_files(whole=True)
    except EdgeftError:
        return False
    return True


def load_takes(folder: Path) -> bool:
    """Whether there is an answer."""
    from edgeft.contract.errors import EdgeftError
    from edgeft.run import load

    try:
        model = load(folder)
        model.generate("a", adapters=dict.fromkeys(model.bundle.adapters, 1.0), max_tokens=1)
    except EdgeftError:
        return False
    return True


def describe(report: dict[str, Any]) -> str:
    """The table and the verdict."""
    keys = ("file", "bytes", "flipped", "cut", "loaded", "missed", "seconds")
    rows = [[row[key] for key in keys] for row in report["rows"]]
    total = report["total"]
    return "\n".join(
        [
            table(keys, rows),
            "",
            f"{total['flipped']:,} flips and {total['cut']:,} cuts, {total['loaded']:,} of them loaded too: "
            f"{total['missed']} not refused, {verdict(not total['missed'])}",
        ]
    )


if __name__ == "__main__":
    start(main)
