"""Does a bundle answer as torch does? Every way in, every way out, on held-out prompts.

    python benchmarks/export_parity.py                           all cases, trained for --steps 60 each
    python benchmarks/export_parity.py --epochs 1                all cases, trained for a whole epoch
    python benchmarks/export_parity.py --case lora --case peft   some cases
    python benchmarks/export_parity.py --case lora --case lora-merged --case lora-int4 --run RUN   a LoRA you have

Each case trains (or takes --run), exports by `edgeft export`, and asks the bundle and torch the same prompts of
e2e/test, phrased prompt + newline. Torch is the folder as PEFT or transformers load it, unmerged, with a plain greedy
loop and a key/value cache; the bundle is asked through `edgeft.run.load(...).generate(..., temperature=0)`.

  changed        prompts that torch answers otherwise than the bare base does: 0 would make the rest worthless
  tokens equal   prompts whose greedy answers (64 tokens) are the same to the last token
  same tokens    share of torch's answer tokens that the bundle's own answer has at the same place
  same choice    share of all positions where both find the same token likeliest, fed the same tokens
  largest diff   of any logit at any position of prompt and answer, fed the same tokens

float32 bundles must be equal: all answers, and a largest difference of at most 1e-3; that decides the exit code. For
int8 and int4 the same numbers are reported beside the loss on e2e/test by `edgeft eval` of the bundle and of the
float run. lora-grid is trained with --device, on the device's own int4 grid, and its run is evaluated on that grid.
"""

from __future__ import annotations

import json
import sys
import tempfile
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

LOGITS = 1e-3
BASE = "base"  # the subject that has no adapter


@dataclass(frozen=True)
class Case:
    """One way from a trainer to a bundle."""

    trained: str  # which training: lora, full, text, peft, grid
    quant: str = "fp32"
    merge: bool = False

    @property
    def beside(self) -> bool:
        """Whether the bundle holds an adapter beside the untouched base."""
        return self.trained != "full" and not self.merge


CASES = {
    "lora": Case("lora"), "lora-merged": Case("lora", merge=True),
    "full": Case("full"),
    "text": Case("text"), "text-merged": Case("text", merge=True),
    "peft": Case("peft"), "peft-merged": Case("peft", merge=True),
    "lora-int8": Case("lora", "int8"), "lora-int4": Case("lora", "int4"),
    "lora-merged-int4": Case("lora", "int4", merge=True), "lora-grid-int4": Case("grid", "int4"),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--case", action="append", choices=CASES, help="repeat for more (default: all)")
    parser.add_argument("--run", type=Path, help="use this LoRA run of edgeft where a case would train one")
    parser.add_argument("--base", type=Path, default=STORIES)
    parser.add_argument("--data", type=Path, default=E2E / "train.jsonl")
    parser.add_argument("--text", type=Path, default=SHARED / "data" / "tinystories" / "train.jsonl")
    parser.add_argument("--test", type=Path, default=E2E / "test.jsonl")
    parser.add_argument("--device", default="cpu-x86_64")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--epochs", type=float, help="train this long instead of --steps")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--test-lines", type=int, default=0, help="of --test for the loss; 0: all")
    args = parser.parse_args()
    if args.child:
        verb, *rest = args.child
        print(json.dumps(CHILDREN[verb](*rest)))
        return
    need(args.base, args.data, args.text, args.test, *([args.run] if args.run else []))
    with workspace(args) as work:
        report = Parity(args, work).report()
    print(json.dumps(report, indent=2) if args.json else describe(report))
    sys.exit(0 if report["equal"] else 1)


class Parity:
    """The cases of one call; a training or an answer of torch is made once for all that need it."""

    def __init__(self, args: Any, work: Path) -> None:
        self.args, self.work = args, work
        self.runs: dict[str, Path] = {}
        self.losses: dict[Path, float] = {}
        self.prompts = work / "prompts.json"
        self.prompts.write_text(json.dumps(self._choose()))
        self.test = args.test
        if args.test_lines:
            self.test = work / "test.jsonl"
            self.test.write_text("".join(json.dumps(line) + "\n" for line in read_lines(args.test)[: args.test_lines]))

    def report(self) -> dict[str, Any]:
        """Every case, one after the other."""
        names = self.args.case or list(CASES)
        rows = [row for name in dict.fromkeys(names) for row in self.case(name, CASES[name])]
        held = [row for row in rows if row["quant"] == "fp32"]
        return {"benchmark": "export_parity", "machine": machine(),
                "setup": {"base": str(self.args.base), "device": self.args.device, "prompts": self.args.prompts,
                          "new": self.args.new, "steps": self.args.steps, "epochs": self.args.epochs,
                          "run": str(self.args.run or "") or None},
                "equal": all(row["good"] for row in held), "cases": rows}

    def case(self, name: str, case: Case) -> list[dict[str, Any]]:
        """Train, export, ask; one row for what was learned and one for the bare base where it is in the bundle."""
        folder, bundle = self.trained(case.trained), self.work / f"bundle-{name}"
        say(f"{name}: exporting")
        model = [] if case.trained == "full" else ["--base", self.args.base]
        beside = ["--name", "tuned"] if case.beside else []
        run([*EDGEFT, "export", folder, "--device", self.args.device, "--quant", case.quant, "--out", bundle,
             *beside, *model, *(["--merge"] if case.merge else [])])
        phrased = case.trained in ("lora", "grid", "full")  # these bundles add the newline by themselves
        rows = []
        subjects = [("adapter" if case.beside else "model", "tuned" if case.beside else "none", case.trained, phrased)]
        if case.beside:
            subjects.append(("bare base", "none", BASE, False))
        for subject, adapter, reference, own in subjects:
            say(f"{name}: asking the {subject}")
            answers = self.torch_answers(reference)
            row = {"case": name, "subject": subject, "quant": case.quant,
                   **child(__file__, "bundle", bundle, self.prompts, answers, self.args.new, adapter, int(own))}
            if reference != BASE:
                row["changed"] = self.changed(reference)
            row["good"] = row["equal"] == row["prompts"] and row["largest"] <= LOGITS and row.get("changed", 1) > 0
            if case.quant != "fp32":
                row |= self.loss(bundle, adapter, reference, own)
            rows.append(row)
        return rows

    def loss(self, bundle: Path, adapter: str, reference: str, own: bool) -> dict[str, Any]:
        """`edgeft eval` of the bundle and of what torch has; for adapters and models that phrase prompts alike."""
        if not own:
            return {}
        words = ["--adapter", adapter] if adapter != "none" else []
        shipped = json.loads(run([*EDGEFT, "eval", bundle, "--data", self.test, *words, "--json"]))
        folder = self.trained(reference)
        if folder not in self.losses:
            floats = json.loads(run([*EDGEFT, "eval", folder, "--data", self.test, "--json"]))
            if floats["tokens"] != shipped["tokens"]:
                fail(f"{bundle}: eval counted {shipped['tokens']} tokens, and {floats['tokens']} in the run")
            self.losses[folder] = floats["loss"]
        return {"loss": shipped["loss"], "float_loss": self.losses[folder], "loss_tokens": shipped["tokens"]}

    def trained(self, kind: str) -> Path:
        """The folder that a kind of training leaves."""
        if kind == "lora" and self.args.run:
            return Path(self.args.run)
        if kind not in self.runs:
            out = self.runs[kind] = self.work / f"run-{kind}"
            say(f"training: {kind}")
            if kind == "peft":
                child(__file__, "peft", self.args.base, self.args.data, out)
                return out
            data = self.args.text if kind == "text" else self.args.data
            long = ["--epochs", self.args.epochs] if self.args.epochs else ["--max-steps", self.args.steps]
            grid = ["--device", self.args.device] if kind == "grid" else []
            run([*EDGEFT, "train", "full" if kind == "full" else "lora", "--base", self.args.base, "--data", data,
                 "--out", out, "--holdout", 0, *long, *grid])
        return self.runs[kind]

    def torch_answers(self, kind: str) -> Path:
        """What torch says to the prompts: of the base, or of what a training left."""
        path = self.work / f"torch-{kind}.npz"
        if not path.exists():
            folder = self.args.base if kind == BASE else self.trained(kind)
            child(__file__, "torch", self.args.base, folder, self.prompts, path, self.args.new)
        return path

    def changed(self, kind: str) -> int:
        """Prompts that torch answers otherwise than the bare base: if there are none, equality proves nothing."""
        import numpy as np

        tuned, base = np.load(self.torch_answers(kind)), np.load(self.torch_answers(BASE))
        return sum(not np.array_equal(tuned[name], base[name]) for name in tuned if name.endswith(".tokens"))

    def _choose(self) -> list[str]:
        """Different prompts, evenly over the file."""
        found = list(dict.fromkeys(line["prompt"] for line in read_lines(self.args.test)))
        step = max(1, len(found) // self.args.prompts)
        return found[::step][: self.args.prompts]


def describe(report: dict[str, Any]) -> str:
    """The table."""
    setup, rows = report["setup"], []
    for row in report["cases"]:
        loss = f"{row['loss']:.3f} / {row['float_loss']:.3f}" if "loss" in row else ""
        rows.append((row["case"], row["subject"], row["quant"], row.get("changed", ""),
                     f"{row['equal']}/{row['prompts']}",
                     f"{row['same_tokens']:.1%}", f"{row['same_choice']:.1%}", f"{row['largest']:.1e}", loss,
                     verdict(row["good"]) if row["quant"] == "fp32" else ""))
    trained = f"{setup['epochs']:g} epochs" if setup["epochs"] else f"{setup['steps']} steps"
    return "\n".join([
        f"{Path(setup['base']).name} for {setup['device']}, trained {trained}, {setup['prompts']} held-out prompts, "
        f"up to {setup['new']} greedy tokens", "",
        table(["case", "subject", "quant", "changed", "tokens equal", "same tokens", "same choice", "largest diff",
               "loss / float", f"equal, <= {LOGITS:g}"], rows), "",
        f"float32 bundles answer as torch does: {verdict(report['equal'])}"])


def ask_torch(base: str, folder: str, prompts: str, out: str, new: str) -> dict[str, Any]:
    """Greedy answers and the logits of prompt and answer, by PEFT or transformers; into `out`."""
    import numpy as np
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    if Path(folder, "adapter_config.json").is_file():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    found: dict[str, Any] = {}
    with torch.inference_mode():
        for index, prompt in enumerate(json.loads(Path(prompts).read_text())):
            ids = tokenizer(prompt + "\n").input_ids
            tokens = _greedy(model, ids, int(new), tokenizer.eos_token_id)
            found[f"{index}.ids"], found[f"{index}.tokens"] = np.asarray(ids), np.asarray(tokens)
            found[f"{index}.logits"] = model(input_ids=torch.tensor([ids + tokens])).logits[0].numpy()
    np.savez(out, **found)
    return {"prompts": len(found) // 3}


def _greedy(model: Any, ids: list[int], new: int, eos: int) -> list[int]:
    """The likeliest token, again and again, with a key/value cache; the end of sequence is the last."""
    import torch

    output, tokens = model(input_ids=torch.tensor([ids]), use_cache=True), []
    while True:
        tokens.append(int(output.logits[0, -1].argmax()))
        if tokens[-1] == eos or len(tokens) == new:
            return tokens
        output = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True)


def ask_bundle(bundle: str, prompts: str, answers: str, new: str, adapter: str, own: str) -> dict[str, Any]:
    """The bundle's greedy answers and its logits on torch's tokens, compared with torch's.

    With `own` the bundle phrases the prompt as it recorded in training; otherwise it is fed prompt + newline.
    """
    import numpy as np

    from edgeft.run import load

    model, wanted = load(bundle), {} if adapter == "none" else {adapter: 1.0}
    torch_says = np.load(answers)
    equal = same = total = chosen = positions = 0
    largest, texts = 0.0, json.loads(Path(prompts).read_text())
    logits = _logits(bundle, torch_says, len(texts), wanted)
    for index, text in enumerate(texts):
        ids, tokens = torch_says[f"{index}.ids"].tolist(), torch_says[f"{index}.tokens"].tolist()
        made = model.generate(text if int(own) else text + "\n", raw=not int(own), adapters=wanted,
                              max_tokens=int(new), temperature=0)
        if made.prompt_tokens != ids:
            fail(f"{bundle}: prompt {index} became {made.prompt_tokens}, torch was asked {ids}")
        equal += made.tokens == tokens
        same += sum(left == right for left, right in zip(made.tokens, tokens, strict=False))
        total += len(tokens)
        left, right = torch_says[f"{index}.logits"], logits[index]
        largest = max(largest, float(np.abs(left - right).max()))
        chosen += int((left.argmax(-1) == right.argmax(-1)).sum())
        positions += len(left)
    return {"prompts": len(texts), "equal": equal, "same_tokens": same / total, "same_choice": chosen / positions,
            "largest": largest, "tokens": total, "positions": positions}


def _logits(bundle: str, torch_says: Any, count: int, adapters: dict[str, float]) -> list[Any]:
    """Teacher-forced logits [prompt + answer, vocabulary] by the runner's own probe, in a process of its own."""
    from edgeft.contract.tensors import TensorFile

    items = [{"ids": torch_says[f"{index}.ids"].tolist(), "forced": torch_says[f"{index}.tokens"].tolist(), "new": 1,
              "adapters": adapters} for index in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        job, out = Path(folder, "job.json"), Path(folder, "answers.safetensors")
        job.write_text(json.dumps({"bundle": bundle, "items": items}))
        run([sys.executable, "-m", "edgeft.run.probe", job, out])
        found = TensorFile(out)
        return [found[f"{index}.logits"].copy() for index in range(count)]


def train_plain_peft(base: str, data: str, out: str) -> dict[str, Any]:
    """A LoRA as a stranger's program writes it: rank-stabilized, with patterns and the head, from PEFT alone."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(
        use_rslora=True, r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj", "lm_head"],
        rank_pattern={"v_proj": 4, "layers.0.mlp.down_proj": 12}, alpha_pattern={"q_proj": 32, "lm_head": 8},
        task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    for line in read_lines(Path(data))[:400:20]:  # a few steps, so that it is no noise alone
        ids = torch.tensor([tokenizer(line["prompt"] + "\n" + line["completion"]).input_ids])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out, save_embedding_layers=False)
    return {"tensors": len(model.peft_config)}


CHILDREN = {"torch": ask_torch, "bundle": ask_bundle, "peft": train_plain_peft}

if __name__ == "__main__":
    start(main)
