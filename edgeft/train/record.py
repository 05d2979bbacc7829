"""A run's own account of itself: what is said when it starts, and what edgeft.json holds at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from edgeft.contract.files import sha256
from edgeft.contract.grid import Quant
from edgeft.contract.memory import peak_mib

from . import launch
from .base import Base
from .checkpoint import trainable
from .held_out import Evaluation
from .job import Job
from .launch import is_main
from .mixture import REPLAY, Task, count, prompt_format
from .packed import packed_weights
from .plan import Plan, shares
from .settings import split_replay

SAMPLES = 8  # prompts kept in edgeft.json
ALIKE = 0.01  # relative distance of two embeddings below which no hidden state of a real model tells them apart


@dataclass
class Run:
    """A training with its inputs read: all that does not change while it learns."""

    job: Job
    base: Base
    tasks: list[Task]
    evaluation: Evaluation
    plan: Plan
    rate: float  # peak learning rate
    quant: Quant | None = None  # the grid that the base is put on
    grid: dict[str, Any] | None = None  # the same, with its digests

    def inputs(self) -> list[str]:
        """What every process must have read alike."""
        job = self.job
        paths = [path for spec in job.tasks for path in (spec.data, spec.eval_data)] + [
            *job.eval_data, job.probe, job.pairs, split_replay(job.settings.replay)[0]]
        return [str(job.to_json()), self.base.fingerprint, *(sha256(Path(path)) for path in paths if path)]


def lines_up_to(log: Path, step: int) -> str:
    """What metrics.jsonl holds of the steps that a resumed run keeps; a line that a kill has cut is left out."""
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    return "".join(kept)


def announce(run: Run, model: nn.Module) -> None:
    """Say what learns, and what each task holds and gives."""
    job, base = run.job, run.base
    learns, total = sizes(model)
    say(f"{job.method.name} on {base.id}{'' if base.fingerprint else ' (new, random weights)'}: "
        f"{learns:,} of {total:,} parameters learn ({100 * learns / total:.2f} %)")
    for task, drawn in zip(run.tasks, shares(run.tasks, run.plan), strict=True):
        held = f", {len(task.held_out)} held out" if task.held_out else ""
        learn = f"{len(base.labels)} labels" if base.labels else f"{count(task.train):,} tokens with loss"
        tokens = "" if base.labels else f", {drawn['completion_tokens']:,} tokens ({drawn['share_of_tokens']:.1%})"
        weight = f"to be {task.replay:.1%} of all tokens" if task.replay else f"weight {task.spec.weight:g}"
        say(f"  {task.name}: {len(task.train):,} examples{held}, {learn}, {weight}; "
            f"drawn {drawn['examples']:,} examples ({drawn['share_of_examples']:.1%}){tokens}")
    for name, examples in run.evaluation.held_out.items():
        say(f"  {name}: held out, {len(examples):,} examples, never trained on")
    if not base.labels and (strangers := _end_strangers(base)):
        say(f"note: this base never saw its end token: {strangers} other tokens have the same embedding, and "
            f"{job.method.name} leaves the head as it is here, so answers will not end by themselves. Let the head "
            "learn (lora with lm_head among --target-modules, or full), or cut answers with --stop")
    say(f"  {len(run.plan):,} steps of {job.settings.batch_size}, peak learning rate {run.rate:.2e}"
        + (f", in {launch.count()} processes" if launch.count() > 1 else ""))


def _end_strangers(base: Base) -> int:
    """Tokens that a head which stays as it is cannot tell from the end token: like it, they were never trained."""
    head: Any = base.model.get_output_embeddings()
    if head is None or base.eos is None or any(parameter.requires_grad for parameter in head.parameters()):
        return 0
    rows = head.weight.detach().float()
    apart = (rows - rows[base.eos]).norm(dim=1) / rows[base.eos].norm()
    return int((apart < ALIKE).sum()) - 1


def sizes(model: nn.Module) -> tuple[int, int]:
    """(parameters that learn, all parameters)."""
    return (sum(parameter.numel() for parameter in trainable(model).values()),
            sum(parameter.numel() for parameter in model.parameters()) + packed_weights(model))


def say(text: str) -> None:
    """Progress goes to stderr, from the main process."""
    if is_main():
        print(text, file=sys.stderr, flush=True)


def record(run: Run, model: nn.Module, state: dict[str, Any], measured: dict[str, Any],
           forgetting: dict[str, Any] | None) -> dict[str, Any]:
    """What edgeft.json holds; `state` is the loop's, with what was measured before the first step as `base`."""
    learns, total = sizes(model)
    before = state.get("base") or {"sets": {}, "held_out": {}}
    return {
        **run.job.to_json(),
        "base": {"id": run.base.id, "fingerprint": run.base.fingerprint or None},
        **({"labels": list(run.base.labels)} if run.base.labels else {}),
        "prompt": prompt_format(run.tasks, run.job.settings.separator).to_json(),
        "data": [{**task.describe(), "drawn": drawn}
                 for task, drawn in zip(run.tasks, shares(run.tasks, run.plan), strict=True)],
        "metrics": {
            "trained_parameters": learns, "parameters": total,
            "processes": launch.count(), "steps": len(run.plan),
            "learning_rate": run.rate, "train_loss": state.get("loss"),
            "tokens": state["tokens"], "seconds": round(state["seconds"], 3),
            "tokens_per_s": round(state["tokens"] / max(state["seconds"], 1e-9), 1),
            "peak_mib": round(peak_mib(), 1), "eval": measured["sets"], "eval_base": before["sets"],
            "held_out": _held_out(before["held_out"], measured["held_out"])},
        "forgetting": forgetting,
        "grid": run.grid,
        "samples": _samples(run),
    }


def _held_out(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {name: {**tuned, "base_loss": before[name]["loss"], "change": tuned["loss"] - before[name]["loss"]}
            for name, tuned in after.items()}


def _samples(run: Run) -> list[str]:
    """A few prompts of the data, held-out ones first: export verifies the bundle on them."""
    groups: Sequence[Any] = [*(examples for name, examples in run.evaluation.sets.items() if name != REPLAY),
                             *(task.train for task in run.tasks if not task.replay)]
    examples = [example for group in groups for example in group]
    step = max(1, len(examples) // SAMPLES)
    prompts = [example.prompt if len(example.prompt) > 1 else example.ids[: len(example.ids) // 2]
               for example in examples[::step][:SAMPLES]]
    return [run.base.tokenizer.decode(ids, skip_special_tokens=True) for ids in prompts]
