"""The only training loop: accelerate moves things to where they compute, the rest is written out here.

Not transformers' Trainer: it saves optimizer state as pickle, resumes by replaying the data, and computes the
head for every prompt token (docs/decisions.md, 2).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from edgeft.contract import Method
from edgeft.contract.data import Example, PromptFormat, read_records, task_names
from edgeft.contract.device import Device
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.files import disk_errors, read_json, write_json
from edgeft.contract.memory import peak_mib
from edgeft.options import to_json

from . import checkpoint
from .base import Base, load_base
from .classify import check_method, learn_head
from .grid import check_frozen, grid_of, put_on_grid
from .labels import labels_of
from .mixture import (
    Ref,
    Task,
    check_tokens,
    count,
    load_tasks,
    passes,
    plan_batches,
    prompt_format,
    split_weight,
    tokenize,
)
from .objective import AnyObjective, make_objective, measure
from .run_folder import write_run
from .settings import TrainSettings

SETTINGS = "settings.json"
SAMPLES = 8  # prompts kept in edgeft.json


@dataclass
class Evaluation:
    """Held-out sets by task, and the probe for forgetting."""

    sets: dict[str, list[Example]]
    probe: list[Example] = field(default_factory=list)

    def measure(self, objective: AnyObjective, limit: int) -> dict[str, Any]:
        """Loss in nats per token and token count of each set and of the probe."""
        sets = {name: measure(objective, examples, limit) for name, examples in self.sets.items()}
        probe = measure(objective, self.probe, limit) if self.probe else None
        return {"sets": sets, "probe": probe}


@dataclass
class Job:
    """What was asked for, as recorded in settings.json; `--resume` compares it."""

    method: Method[Any]
    options: Any
    settings: TrainSettings
    base: str
    data: list[str]
    eval_data: list[str]
    probe: str
    out: Path
    device: Device | None = None

    def to_json(self) -> dict[str, Any]:
        """As recorded."""
        return {"method": self.method.name, "base": self.base, "data": self.data, "eval_data": self.eval_data,
                "probe": self.probe, "device": self.device.name if self.device else "",
                "options": to_json(self.options), "settings": to_json(self.settings)}


def train(job: Job, *, resume: bool = False) -> dict[str, Any]:
    """Train and write the run folder; returns what edgeft.json holds."""
    settings = job.settings
    with disk_errors(job.out):
        return _train(job, settings, resume)


def _train(job: Job, settings: TrainSettings, resume: bool) -> dict[str, Any]:
    accelerator = Accelerator(mixed_precision=_precision(settings))
    if accelerator.num_processes > 1:
        raise UsageError(f"{accelerator.num_processes} processes: training runs in one process in this version.")
    base = load_base(job.base, seed=settings.seed, labels=labels_of(split_weight(text)[0] for text in job.data))
    check_method(job.method, base.model)
    length = _max_length(settings, base)
    tasks = load_tasks(job.data, base, separator=settings.separator, max_length=length,
                       holdout=0.0 if job.eval_data else settings.holdout)
    check_tokens(tasks)
    evaluation = _evaluation(job, tasks, base, length)
    plan = plan_batches(tasks, batch_size=settings.batch_size, epochs=settings.epochs,
                        max_steps=settings.max_steps, seed=settings.seed)

    torch.manual_seed(settings.seed)
    own = {name: id(parameter) for name, parameter in base.model.named_parameters()}
    grid = grid_of(job.device) if job.device else None
    if grid:
        put_on_grid(base.model, grid["quant"], grid["block"])
    model = job.method.attach(base.model, job.options)
    learn_head(base.model, model)
    _check_attached(job, model)
    if grid:
        check_frozen(base.model, own, job.method.name)
    if settings.gradient_checkpointing:
        base.model.gradient_checkpointing_enable()
        base.model.enable_input_require_grads()
    if not grid:
        _settle(model, accelerator)
    if not base.fingerprint and any(not parameter.requires_grad for parameter in base.model.parameters()):
        raise UsageError(f"base {job.base!r}: has no weights yet, and {job.method.name} keeps some as they are. "
                         "`edgeft train full` makes a model of it.")
    rate = settings.learning_rate or job.method.learning_rate * 2048 / base.hidden_size
    optimizer = torch.optim.AdamW(checkpoint.trainable(model).values(), lr=rate, weight_decay=settings.weight_decay,
                                  fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    objective = make_objective(base, model)

    job.out.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {"seconds": 0.0, "tokens": 0}
    path = checkpoint.latest(job.out / "checkpoints") if resume else None
    if path is not None:
        state = checkpoint.load(path, accelerator.unwrap_model(model), optimizer.optimizer)
        _say(f"resumed at step {state['step']} of {len(plan)} from {path}")
    else:
        write_json(job.out / SETTINGS, job.to_json())
        state["base"] = evaluation.measure(objective, settings.tokens_per_pass)
    _announce(job, base, model, tasks, plan, rate)
    loop = _Loop(job, accelerator, model, optimizer, objective, tasks, evaluation, plan, rate, state)
    loop.run(first=int(state.get("step", 0)))

    measured = evaluation.measure(objective, settings.tokens_per_pass)
    record = _record(job, base, tasks, prompt_format(tasks, settings.separator), state, measured, plan, rate,
                     _samples(evaluation, tasks, base), grid)
    if accelerator.is_main_process:
        write_run(job, base, accelerator.unwrap_model(model), record)
    accelerator.wait_for_everyone()
    return record


class _Loop:
    """The steps, and what is shown and saved between them."""

    def __init__(self, job: Job, accelerator: Accelerator, model: nn.Module, optimizer: Any, objective: AnyObjective,
                 tasks: Sequence[Task], evaluation: Evaluation, plan: list[list[Ref]], rate: float,
                 state: dict[str, Any]) -> None:
        self.job, self.accelerator, self.model, self.optimizer = job, accelerator, model, optimizer
        self.objective, self.tasks, self.evaluation, self.plan = objective, tasks, evaluation, plan
        self.rate, self.state = rate, state
        self.main = accelerator.is_main_process
        self.log = (job.out / "metrics.jsonl" if self.main else Path(os.devnull)).open("a", encoding="utf-8")

    def run(self, first: int) -> None:
        settings = self.job.settings
        self.model.train()
        with self.log, tqdm(total=len(self.plan), initial=first, unit="step", desc=self.job.method.name,
                            dynamic_ncols=True, disable=not (self.main and sys.stderr.isatty())) as bar:
            for step in range(first, len(self.plan)):
                start = time.perf_counter()
                loss, tokens, norm = self.step(step)
                self.state["seconds"] += time.perf_counter() - start
                self.state["tokens"] += tokens
                self.state["loss"] = loss if "loss" not in self.state else 0.95 * self.state["loss"] + 0.05 * loss
                self.report(bar, step + 1, loss, norm)
                if settings.eval_every and (step + 1) % settings.eval_every == 0:
                    self.write({"step": step + 1,
                                "eval": self.evaluation.measure(self.objective, settings.tokens_per_pass)})
                if (step + 1) % settings.save_every == 0 and step + 1 < len(self.plan) and self.main:
                    checkpoint.save(self.job.out / "checkpoints", step + 1,
                                    self.accelerator.unwrap_model(self.model), self.optimizer.optimizer,
                                    self.state, settings.keep)

    def step(self, step: int) -> tuple[float, int, float]:
        """One optimizer step; returns (nats per token, tokens processed, gradient norm)."""
        settings = self.job.settings
        batch = [self.tasks[task].train[line] for task, line in self.plan[step]]
        rate = self.rate * _schedule(settings, step, len(self.plan))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        learned = count(batch)
        mine = batch[self.accelerator.process_index :: self.accelerator.num_processes]
        total = torch.zeros((), device=self.accelerator.device)
        for part in passes(mine, settings.tokens_per_pass):
            with self.accelerator.autocast():
                loss = self.objective(part)
            # gradients are averaged over processes, and the loss is a mean over the whole batch's tokens
            self.accelerator.backward(loss * (self.accelerator.num_processes / learned))
            total += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        value = float(self.accelerator.reduce(total, "sum")) / learned
        if not math.isfinite(value):
            raise EdgeftError(f"The loss is {value} at step {step + 1}. Start a new run with a lower "
                              f"--learning-rate (now {self.rate:g}).")
        return value, sum(len(example.ids) for example in batch), float(norm)

    def report(self, bar: Any, step: int, loss: float, norm: float) -> None:
        speed = self.state["tokens"] / max(self.state["seconds"], 1e-9)
        rate = self.optimizer.param_groups[0]["lr"]
        self.write({"step": step, "loss": round(loss, 5), "grad_norm": round(norm, 4), "lr": rate,
                    "tokens_per_s": round(speed, 1)})
        bar.set_postfix_str(f"loss {self.state['loss']:.3f}, {speed:,.0f} tok/s", refresh=False)
        bar.update()
        if self.main and bar.disable and (step % max(1, len(self.plan) // 10) == 0 or step == len(self.plan)):
            _say(f"step {step}/{len(self.plan)}  loss {self.state['loss']:.3f}  {speed:,.0f} tokens/s")

    def write(self, values: dict[str, Any]) -> None:
        self.log.write(json.dumps(values) + "\n")
        self.log.flush()


def _schedule(settings: TrainSettings, step: int, total: int) -> float:
    """Share of the peak learning rate at a step."""
    warm = max(1, round(settings.warmup * total))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, total - warm)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[settings.schedule]


def _precision(settings: TrainSettings) -> str:
    if settings.precision == "auto":
        return "bf16" if torch.cuda.is_available() else "no"
    return {"bf16": "bf16", "fp32": "no"}[settings.precision]


def _settle(model: nn.Module, accelerator: Accelerator) -> None:
    """What learns does so in float32; on a GPU what is frozen is kept in bfloat16, after all rounding to a grid.

    Not called for a base on a grid: bfloat16 would move its weights off it.
    """
    half = accelerator.device.type == "cuda" and accelerator.mixed_precision == "bf16"
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in model.named_parameters():
        if name in learns or not half:
            parameter.data = parameter.data.float()
        else:
            parameter.data = parameter.data.bfloat16()


def _max_length(settings: TrainSettings, base: Base) -> int:
    if settings.max_length > base.context:
        raise UsageError(f"--max-length {settings.max_length} is more than the base's context of {base.context}.")
    return settings.max_length or min(base.context, 1024)


def _evaluation(job: Job, tasks: Sequence[Task], base: Base, length: int) -> Evaluation:
    separator = job.settings.separator
    if job.eval_data:
        paths = [Path(text) for text in job.eval_data]
        sets = {name: tokenize(read_records(path), path, base, separator, length)
                for name, path in zip(task_names(paths), paths, strict=True)}
    else:
        sets = {task.name: task.held_out for task in tasks if task.held_out}
    probe: list[Example] = []
    if job.probe:
        records = read_records(Path(job.probe))
        if "text" not in records[0]:
            raise UsageError(f"{job.probe}: a probe for forgetting holds lines of {{\"text\": ...}}.")
        probe = tokenize(records, Path(job.probe), base, separator, length)
    return Evaluation(sets, probe)


def _check_attached(job: Job, model: nn.Module) -> None:
    if not checkpoint.trainable(model):
        raise EdgeftError(f"{job.method.name}: attach() left nothing to train. Check its options.")


def _announce(job: Job, base: Base, model: nn.Module, tasks: Sequence[Task], plan: list[list[Ref]],
              rate: float) -> None:
    learns = sum(parameter.numel() for parameter in checkpoint.trainable(model).values())
    total = sum(parameter.numel() for parameter in model.parameters())
    _say(f"{job.method.name} on {base.id}{'' if base.fingerprint else ' (new, random weights)'}: "
         f"{learns:,} of {total:,} parameters learn ({100 * learns / total:.2f} %)")
    for task in tasks:
        held = f", {len(task.held_out)} held out" if task.held_out else ""
        learn = f"{len(base.labels)} labels" if base.labels else f"{count(task.train):,} tokens with loss"
        _say(f"  {task.name}: {len(task.train):,} examples{held}, {learn}, "
             f"weight {task.weight:g}")
    _say(f"  {len(plan):,} steps of {job.settings.batch_size}, peak learning rate {rate:.2e}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _record(job: Job, base: Base, tasks: Sequence[Task], prompt: PromptFormat, state: dict[str, Any],
            measured: dict[str, Any], plan: list[list[Ref]], rate: float,
            samples: list[str], grid: dict[str, Any] | None) -> dict[str, Any]:
    """The run's own account of itself, for edgeft.json."""
    before = state.get("base") or {"sets": {}, "probe": None}
    probe, probe_before = measured["probe"], before["probe"]
    forgetting = None
    if probe and probe_before:
        forgetting = {"probe": str(Path(job.probe).resolve()), "tokens": probe["tokens"],
                      "base_loss": probe_before["loss"], "tuned_loss": probe["loss"],
                      "forgetting": probe["loss"] - probe_before["loss"]}
    return {
        **job.to_json(),
        "base": {"id": base.id, "fingerprint": base.fingerprint or None},
        **({"labels": list(base.labels)} if base.labels else {}),
        "prompt": prompt.to_json(),
        "data": [task.describe() for task in tasks],
        "metrics": {
            "steps": len(plan), "learning_rate": rate, "train_loss": state.get("loss"),
            "tokens": state["tokens"], "seconds": round(state["seconds"], 3),
            "tokens_per_s": round(state["tokens"] / max(state["seconds"], 1e-9), 1),
            "peak_mib": round(peak_mib(), 1), "eval": measured["sets"], "eval_base": before["sets"]},
        "forgetting": forgetting,
        "grid": grid,
        "samples": samples,
    }


def _samples(evaluation: Evaluation, tasks: Sequence[Task], base: Base) -> list[str]:
    """A few prompts of the data, held-out ones first: export verifies the bundle on them."""
    examples = [example for group in (*evaluation.sets.values(), *(task.train for task in tasks)) for example in group]
    step = max(1, len(examples) // SAMPLES)
    prompts = [example.prompt if len(example.prompt) > 1 else example.ids[: len(example.ids) // 2]
               for example in examples[::step][:SAMPLES]]
    return [base.tokenizer.decode(ids, skip_special_tokens=True) for ids in prompts]


def resume_settings(out: Path) -> dict[str, Any]:
    """What an unfinished run was started with; UsageError if there is none."""
    if (out / "edgeft.json").is_file():
        raise UsageError(f"{out}: this run has ended; there is nothing to resume.")
    if not (out / SETTINGS).is_file():
        raise UsageError(f"{out}: there is no run to resume here.")
    return read_json(out / SETTINGS)
