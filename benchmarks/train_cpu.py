"""Is `edgeft train lora` as fast as plain PEFT + transformers Trainer on a CPU, and does it learn as well?

    python benchmarks/train_cpu.py                    60 steps each, 3 times in turn
    python benchmarks/train_cpu.py --full --repeats 1 one whole epoch each

Both train the same LoRA (rank, alpha, layers) on the same base and lines, with the same batch size, AdamW, learning
rate, cosine schedule, clipping, float32 and torch threads, each in a process of its own, in turn.

Counted alike for both:
  tokens/s   real (unpadded) tokens of all steps but the first --skip, over the time between the ends of their
             optimizer steps, taken from outside by hooks in torch; loading, warm-up and saving are not in it
  peak       resident memory of the whole process, loading included
  loss       of what was saved, on e2e/valid, by one evaluator in this file (plain torch and PEFT): nats per
             completion token, end-of-sequence included

The peer is written as the libraries' documentation does: prompt + newline + completion tokenized once, labels -100 on
the prompt, DataCollatorForSeq2Seq (each batch padded to its own longest), the DataLoader's and Trainer's defaults.
Those do not group lines of like length; edgeft does, within 16 batches. --group-by-length times a third contestant
that turns the Trainer's own grouping on.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from common import (
    E2E,
    STORIES,
    arguments,
    child,
    fail,
    machine,
    medians,
    need,
    peak_mib,
    read_lines,
    say,
    start,
    table,
    verdict,
    workspace,
)

TARGET_LOSS = 1.65  # on e2e/valid after one epoch
WARMUP = 0.03


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", type=Path, default=STORIES)
    parser.add_argument("--data", type=Path, default=E2E / "train.jsonl", help="lines of prompt and completion")
    parser.add_argument("--eval-data", type=Path, default=E2E / "valid.jsonl")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, help="default: edgeft's own for LoRA, 2e-4 * 2048 / hidden size")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--skip", type=int, default=3, help="first steps that are not timed")
    parser.add_argument("--full", action="store_true", help="one whole epoch instead of --steps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--group-by-length", action="store_true", help="also time the Trainer with its own grouping")
    args = parser.parse_args()
    if args.child:
        verb, setup, *rest = args.child
        print(json.dumps(CHILDREN[verb](json.loads(setup), *rest)))
        return
    need(args.base, args.data, args.eval_data)
    with workspace(args) as work:
        report = compare(args, work)
    print(json.dumps(report, indent=2) if args.json else describe(report))


def compare(args: Any, work: Path) -> dict[str, Any]:
    """Run the contestants in turn; medians, and edgeft's share of the peer."""
    hidden = json.loads((args.base / "config.json").read_text())["hidden_size"]
    setup = {"base": str(args.base), "data": str(args.data), "rank": args.rank, "alpha": args.alpha,
             "batch_size": args.batch_size, "lr": args.lr or 2e-4 * 2048 / hidden, "max_length": args.max_length,
             "precision": args.precision, "steps": 0 if args.full else args.steps, "skip": args.skip,
             "eval_data": str(args.eval_data)}
    names = ["edgeft", "peer", *(["grouped"] if args.group_by_length else [])]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for repeat in range(args.repeats):
        for name in names if repeat % 2 == 0 else names[::-1]:
            out = work / f"{name}-{repeat}"
            result = child(__file__, name, json.dumps({**setup, "seed": repeat}), out)
            result |= child(__file__, "evaluate", json.dumps(setup), out)
            runs[name].append(result)
            say(f"{name:8} run {repeat + 1}/{args.repeats}: {result['tokens_per_s']:,.0f} tokens/s, "
                f"{result['peak_mib']:,.0f} MiB, loss {result['loss']:.3f}")
    counts = {name: found[0]["all_tokens"] for name, found in runs.items()}
    if args.full and len(set(counts.values())) > 1:
        fail(f"over one epoch the contestants saw different numbers of tokens: {counts}")
    middle = {name: medians(found) for name, found in runs.items()}
    ratios = {name: {key: middle["edgeft"][key] / middle[name][key] for key in ("tokens_per_s", "peak_mib", "loss")}
              for name in names[1:]}
    return {"benchmark": "train_cpu", "machine": machine(), "setup": {**setup, "full": args.full,
            "repeats": args.repeats, "clock": "steps after the first --skip, loading and saving excluded"},
            "medians": middle, "ratio": ratios, "runs": runs}


def describe(report: dict[str, Any]) -> str:
    """The table."""
    labels = {"edgeft": "edgeft train lora", "peer": "PEFT + Trainer", "grouped": "PEFT + Trainer, grouped by length"}
    rows = [(labels[name], f"{row['tokens_per_s']:,.0f}", f"{row['seconds']:.1f}", f"{row['tokens']:,.0f}",
             f"{row['padding']:.1%}", f"{row['peak_mib']:,.0f}", f"{row['loss']:.3f}")
            for name, row in report["medians"].items()]
    setup = report["setup"]
    steps = f"{report['medians']['edgeft']['steps']:.0f} steps" + (" (one epoch)" if setup["full"] else "")
    lines = [f"LoRA r{setup['rank']} on all linear layers of {Path(setup['base']).name}, {steps} of "
             f"{setup['batch_size']}, {setup['precision']}, learning rate {setup['lr']:.2e}, medians of "
             f"{setup['repeats']} runs in turn, {report['medians']['edgeft']['threads']:.0f} torch threads",
             "", table(["", "tokens/s", "seconds", "tokens", "padding", "peak MiB", "valid loss"], rows), ""]
    for name, ratio in report["ratio"].items():
        lines.append(f"edgeft / {labels[name]}: {ratio['tokens_per_s']:.2f} of its speed (target 1.00: "
                     f"{verdict(ratio['tokens_per_s'] >= 1)}), {ratio['peak_mib']:.2f} of its memory, "
                     f"{ratio['loss']:.3f} of its loss")
    if setup["full"]:
        loss = report["medians"]["edgeft"]["loss"]
        lines.append(f"edgeft's valid loss after one epoch: {loss:.3f} (target {TARGET_LOSS}: "
                     f"{verdict(loss <= TARGET_LOSS)})")
    return "\n".join(lines)


class Clock:
    """Times and counts a training from outside, the same way whoever trains: every batch that the embedding sees and
    the end of every optimizer step."""

    def __init__(self, base: str) -> None:
        import torch
        from torch.nn.modules.module import register_module_forward_pre_hook
        from torch.optim.optimizer import register_optimizer_step_post_hook
        from transformers import AutoTokenizer

        self.passes: list[tuple[float, int, int]] = []  # when, real tokens, tokens with padding
        self.ends: list[float] = []
        eos = AutoTokenizer.from_pretrained(base).eos_token_id
        register_optimizer_step_post_hook(lambda *_: self.stepped())

        def counting(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            if isinstance(module, torch.nn.Embedding):  # a packed one, too
                # a row ends with its first end of sequence, and both contestants pad with more of them
                real = int(((given[0] == eos).to(torch.int8).argmax(1) + 1).sum())
                self.passes.append((time.perf_counter(), real, given[0].numel()))

        register_module_forward_pre_hook(counting)

    def stepped(self) -> None:
        """An optimizer step has ended, on a GPU too."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def result(self, skip: int, said: int) -> dict[str, Any]:
        """Speed of all steps but the first `skip`; `said` is the contestant's own count of all its tokens."""
        import torch

        skip = min(skip, len(self.ends) - 1)
        start, end = self.ends[skip - 1] if skip else self.passes[0][0], self.ends[-1]
        trained = [one for one in self.passes if one[0] < end]
        if sum(one[1] for one in trained) != said:
            fail(f"tokens counted {sum(one[1] for one in trained)}, the trainer's own count {said}")
        timed = [one for one in trained if one[0] >= start]
        tokens, padded = sum(one[1] for one in timed), sum(one[2] for one in timed)
        return {"tokens_per_s": tokens / (end - start), "seconds": end - start, "tokens": tokens,
                "padding": 1 - tokens / padded, "steps": len(self.ends), "timed_steps": len(self.ends) - skip,
                "all_tokens": said, "peak_mib": peak_mib(), "threads": torch.get_num_threads()}


def train_edgeft(setup: dict[str, Any], out: str) -> dict[str, Any]:
    """`edgeft train`, as typed, with the clock beside it."""
    clock = Clock(setup["base"])
    from edgeft.cli import cli

    length = ["--max-steps", setup["steps"]] if setup["steps"] else ["--epochs", 1]
    lora = ["--rank", setup["rank"], "--alpha", setup["alpha"], "--target-modules", "all-linear"]
    command = ["train", setup.get("method", "lora"), "--base", setup["base"], "--data", setup["data"], "--out", out,
               *([] if setup.get("method") == "full" else lora), *setup.get("options", ()), "--batch-size",
               setup["batch_size"], "--lr", setup["lr"], "--max-length", setup["max_length"],
               "--precision", setup["precision"], "--schedule", "cosine", "--warmup", WARMUP, "--holdout", 0,
               "--seed", setup["seed"], "--save-every", 1_000_000, *length]
    cli.main([str(word) for word in command], standalone_mode=False)
    metrics = json.loads(Path(out, "edgeft.json").read_text())["metrics"]
    return {**clock.result(setup["skip"], metrics["tokens"]), "own_tokens_per_s": metrics["tokens_per_s"]}


def train_peer(setup: dict[str, Any], out: str, *, grouped: bool = False) -> dict[str, Any]:
    """Plain PEFT + transformers Trainer; on a GPU a frozen base is loaded in bfloat16, as their guides do."""
    clock = Clock(setup["base"])
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(setup["seed"])
    tokenizer = AutoTokenizer.from_pretrained(setup["base"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    gpu, full = setup.get("gpu", False), setup.get("method") == "full"
    model = AutoModelForCausalLM.from_pretrained(setup["base"], **loading(setup))
    if not full:
        if setup.get("four_bit"):
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        model = get_peft_model(model, LoraConfig(r=setup["rank"], lora_alpha=setup["alpha"],
                                                 target_modules="all-linear", task_type="CAUSAL_LM"))
    lines = [encode(tokenizer, line, setup["max_length"]) for line in read_lines(Path(setup["data"]))]
    collate, real = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100), []

    def counting(features: list[dict[str, Any]]) -> Any:
        real.append(sum(len(feature["input_ids"]) for feature in features))
        return collate(features)

    length = {"max_steps": setup["steps"]} if setup["steps"] else {"num_train_epochs": 1}
    grouping = {"train_sampling_strategy": "group_by_length"} if grouped else {}
    Trainer(model=model, train_dataset=lines, data_collator=counting, args=TrainingArguments(
        output_dir=f"{out}-trainer", per_device_train_batch_size=setup["batch_size"], learning_rate=setup["lr"],
        lr_scheduler_type="cosine", warmup_steps=WARMUP, weight_decay=0.0, max_grad_norm=1.0,
        bf16=setup["precision"] == "bf16", use_cpu=not gpu, report_to="none", save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=gpu,  # without one it would only warn
        seed=setup["seed"], **length, **grouping)).train()
    tokens = sum(real[: len(clock.ends)])  # the loader looks one batch ahead
    result = clock.result(setup["skip"], tokens)
    model.save_pretrained(out, **({} if full else {"save_embedding_layers": False}))
    return result


def loading(setup: dict[str, Any]) -> dict[str, Any]:
    """How the peer loads its base."""
    import torch

    if setup.get("four_bit"):
        from transformers import BitsAndBytesConfig

        return {"device_map": {"": 0}, "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)}
    frozen = setup.get("gpu") and setup.get("method") != "full"
    return {"dtype": torch.bfloat16 if frozen else torch.float32}


def encode(tokenizer: Any, line: dict[str, Any], longest: int) -> dict[str, list[int]]:
    """Ids of prompt, newline, completion and end of sequence; labels on the completion and the end alone."""
    prompt = tokenizer(line["prompt"] + "\n").input_ids
    ids = [*tokenizer(line["prompt"] + "\n" + line["completion"]).input_ids, tokenizer.eos_token_id][:longest]
    return {"input_ids": ids, "attention_mask": [1] * len(ids),
            "labels": [-100] * len(prompt) + ids[len(prompt):]}


def evaluate(setup: dict[str, Any], run: str) -> dict[str, Any]:
    """Loss of a saved LoRA or model by plain torch and PEFT, one line at a time: nats per completion token."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setup["base"])
    device = "cuda" if setup.get("gpu") else "cpu"
    if setup.get("method") == "full":
        model = AutoModelForCausalLM.from_pretrained(run, dtype=torch.float32)
    else:
        own = loading(setup) if setup.get("four_bit") else {"dtype": torch.float32}
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(setup["base"], **own), run)
    if not setup.get("four_bit"):  # that is there already
        model.to(device)
    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for line in read_lines(Path(setup["eval_data"]))[: setup.get("eval_lines")]:
            example = encode(tokenizer, line, setup["max_length"])
            logits = model(input_ids=torch.tensor([example["input_ids"]], device=device)).logits[0, :-1]
            labels = torch.tensor(example["labels"][1:], device=device)
            total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
            count += int((labels != -100).sum())
    return {"loss": total / count, "eval_tokens": count}


CHILDREN = {"edgeft": train_edgeft, "peer": train_peer, "evaluate": evaluate,
            "grouped": lambda setup, out: train_peer(setup, out, grouped=True)}

if __name__ == "__main__":
    start(main)
    sys.exit(0)
