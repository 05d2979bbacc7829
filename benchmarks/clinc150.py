"""Does a classifier on the device know 150 intents, and when it is asked something else?

    python benchmarks/clinc150.py                    both cases, fp32 and int4
    python benchmarks/clinc150.py --case bert        one case
    python benchmarks/clinc150.py --case stories --run RUN   a run that you have, of the same data and --holdout

  bert     an encoder from a config alone: random weights, full tuning, a tokenizer made from the training texts
  stories  a LoRA and a classification head on stories3m, a small decoder that knows children's stories

Data: CLINC150, small set: 50 lines for each of 150 intents, none of them out of scope; 5 % are held out of training
as `--holdout` does it. Tested on all 4,800 test lines, 300 of them out of scope, from the exported bundle by the
runner alone.

  in-scope   share of the 4,500 known lines whose likeliest label is right
  rejecting  the same when a text is refused whose best score is below the one that 5 % of the held-out lines miss
  oos recall share of the 300 others that are refused then
  all        share of all 4,800 that are right then: known lines by label, others by being refused

No out-of-scope line is used for anything but this test.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from common import (
    EDGEFT,
    SHARED,
    STORIES,
    arguments,
    child,
    fail,
    machine,
    need,
    read_lines,
    run,
    say,
    start,
    table,
    verdict,
    workspace,
)

CLINC = SHARED / "data" / "clinc150"
OTHER, HELD, MISSED = "oos", 0.05, 0.05
TARGET = 0.80  # in-scope, for a LoRA on stories3m
ENCODER = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 192, "intermediate_size": 512,
           "num_hidden_layers": 2, "num_attention_heads": 6, "max_position_embeddings": 64, "pad_token_id": 0}
TRAIN = {"bert": ["full", "--lr", "1e-3", "--warmup", "0.1", "--epochs", "12"],
         "stories": ["lora", "--rank", "16", "--epochs", "6"]}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--case", action="append", choices=TRAIN, help="repeat for more (default: all)")
    parser.add_argument("--run", type=Path, help="use this run of edgeft where the case would train one")
    parser.add_argument("--data", type=Path, default=CLINC, help="a folder with train.jsonl and test.jsonl")
    parser.add_argument("--base", type=Path, default=STORIES, help="the decoder")
    parser.add_argument("--device", default="cpu-x86_64")
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(ask(*args.child)))
        return
    if args.run and len(args.case or TRAIN) != 1:
        fail("--run is one case's: name it with --case.")
    need(*([args.run] if args.run else []), args.base, args.data / "train.jsonl", args.data / "test.jsonl")
    with workspace(args) as work:
        rows = [row for case in args.case or TRAIN for row in measure(case, args, work)]
    report = {"machine": machine(), "cases": rows}
    print(json.dumps(report, indent=2) if args.json else describe(rows))


def measure(case: str, args: Any, work: Path) -> list[dict[str, Any]]:
    """Train once, export to each kind of weights, ask each bundle."""
    method, *options = TRAIN[case]
    source, data = args.run or work / case, args.data / "train.jsonl"
    if not args.run:
        base = make_encoder(data, work) if case == "bert" else args.base
        say(f"{case}: training {method}")
        run([*EDGEFT, "train", method, "--base", base, "--data", data, "--out", source, "--holdout", str(HELD),
             "--batch-size", str(args.batch_size), *options])
    trained = json.loads((source / "edgeft.json").read_text())
    rows = []
    for quant in ("fp32", "int4"):
        say(f"{case}: exporting {quant}")
        bundle = work / f"{case}-{quant}"
        run([*EDGEFT, "export", source, "--device", args.device, "--quant", quant, "--out", bundle])
        say(f"{case}: asking {quant}")
        size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) / 2**20
        rows.append({"case": case, "method": method, "quant": quant, "train_seconds": trained["metrics"]["seconds"],
                     "train_tokens_per_s": trained["metrics"]["tokens_per_s"], "bundle_mib": round(size, 1),
                     **child(__file__, bundle, data, args.data / "test.jsonl")})
    return rows


def make_encoder(data: Path, work: Path) -> Path:
    """A bert of random weights: a config, and a WordPiece vocabulary of the training texts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    folder = work / "bert-base"
    folder.mkdir()
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    texts = [line["text"] for line in read_lines(data)]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=4096, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
        "sep_token": "[SEP]"}))
    (folder / "config.json").write_text(json.dumps({**ENCODER, "vocab_size": tokenizer.get_vocab_size()}))
    return folder


def ask(bundle: str, train: str, test: str) -> dict[str, Any]:
    """The held-out lines and all test lines through the runner."""
    import numpy as np

    from edgeft.contract.data import record_digest
    from edgeft.run import load

    model = load(bundle)
    held = [line for line in read_lines(Path(train)) if int(record_digest(line)[:8], 16) < HELD * 2**32]
    known = [scores[0][1] for scores in model.classify([line["text"] for line in held])]
    threshold = float(np.quantile(known, MISSED))
    lines = read_lines(Path(test))
    start = time.perf_counter()
    best = [scores[0] for scores in model.classify([line["text"] for line in lines])]
    seconds = time.perf_counter() - start
    other = np.array([line["label"] == OTHER for line in lines])
    right = np.array([label == line["label"] for (label, _), line in zip(best, lines, strict=True)])
    refused = np.array([score < threshold for _, score in best])
    if not other.any() or other.all():
        fail(f"{test}: needs lines in scope and lines labelled {OTHER!r}")
    return {"lines": len(lines), "lines_per_s": round(len(lines) / seconds, 1), "threshold": round(threshold, 4),
            "in_scope": float(right[~other].mean()), "rejecting": float((right & ~refused)[~other].mean()),
            "oos_recall": float(refused[other].mean()), "all": float(np.where(other, refused, right & ~refused).mean())}


def describe(rows: list[dict[str, Any]]) -> str:
    """The table."""
    shown = [(f"{row['case']} ({row['method']})", row["quant"], f"{row['bundle_mib']:.1f}",
              f"{row['train_seconds']:.0f}", f"{row['in_scope']:.1%}", f"{row['rejecting']:.1%}",
              f"{row['oos_recall']:.1%}", f"{row['all']:.1%}", f"{row['lines_per_s']:,.0f}") for row in rows]
    text = table(["case", "quant", "MiB", "training s", "in-scope", "rejecting", "oos recall", "all", "lines/s"], shown)
    stories = [row["in_scope"] for row in rows if row["case"] == "stories" and row["quant"] == "fp32"]
    return text + (f"\n\nLoRA on stories3m in-scope at least {TARGET:.0%}: {verdict(stories[0] >= TARGET)}"
                   if stories else "")


if __name__ == "__main__":
    start(main)
