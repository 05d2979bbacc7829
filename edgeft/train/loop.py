"""The only training loop, written out: in one process or in several that share each batch (processes.py).

Not transformers' Trainer: it saves optimizer state as pickle, resumes by replaying the data, and computes the
head for every prompt token (docs/decisions.md, 2).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from tqdm import tqdm

from edgeft.contract import TaskOptions
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.files import disk_errors, write_json

from . import checkpoint, processes
from .base import Base, load_base
from .classify import check_method, learn_head
from .compute import Compute, compile_errors, compute_on, place, settle
from .grid import check_frozen, grid_of, put_on_grid
from .held_out import load_evaluation
from .job import SETTINGS, Job
from .labels import labels_of
from .launch import is_main
from .mixture import count, load_tasks
from .objective import AnyObjective, Objective, make_objective
from .plan import plan_batches
from .record import Run, announce, record, say
from .run_folder import write_run
from .settings import TrainSettings
from .shard import gather, whole


def train(job: Job, *, resume: bool = False) -> dict[str, Any]:
    """Train and write the run folder; returns what edgeft.json holds."""
    with disk_errors(job.out), processes.joined() as device, compile_errors(job.settings):
        return _train(job, resume, compute_on(device, job.settings))


def _train(job: Job, resume: bool, compute: Compute) -> dict[str, Any]:
    settings = job.settings
    run = _read_inputs(job)
    path = checkpoint.latest(job.out / "checkpoints") if resume else None
    processes.agree(lambda: [*run.inputs(), str(path)])
    model = _attach(run, compute)
    announce(run, model)
    place(model, run.base, compute)
    optimizer = torch.optim.AdamW(checkpoint.trainable(model).values(), lr=run.rate,
                                  weight_decay=settings.weight_decay, fused=True)
    task = job.options.task_index if isinstance(job.options, TaskOptions) else None
    objective = make_objective(run.base, model, task)

    state: dict[str, Any] = {"seconds": 0.0, "tokens": 0}
    if path is not None:
        state = checkpoint.load(path, model, optimizer)
        say(f"resumed at step {state['step']} of {len(run.plan)} from {path}")
    else:
        if is_main():
            job.out.mkdir(parents=True, exist_ok=True)
            write_json(job.out / SETTINGS, job.to_json())
        with _base_of(model, objective) as base, compute.autocast():  # PEFT may take our forward off for this
            state["base"] = run.evaluation.measure(base, settings.tokens_per_pass)
    _Loop(run, compute, model, optimizer, objective, state).run(first=int(state.get("step", 0)))

    found = record(run, model, state, run.evaluation.measure(objective, settings.tokens_per_pass))
    if compute.sharded:
        gather(model)
    if is_main():
        write_run(job, run.base, model, found)
    return found


def _read_inputs(job: Job) -> Run:
    """Base, examples, evaluation sets and the plan of all batches."""
    settings = job.settings
    base = load_base(job.base, seed=settings.seed, labels=labels_of(Path(spec.data) for spec in job.trained))
    check_method(job.method, base.model)
    length = _max_length(settings, base)
    tasks = load_tasks(job.trained, base, separator=settings.separator, max_length=length,
                       holdout=0.0 if job.eval_data else settings.holdout)
    rate = settings.learning_rate or job.method.learning_rate * 2048 / base.hidden_size
    return Run(job, base, tasks, load_evaluation(job, tasks, base, length), plan_batches(tasks, settings), rate,
               grid_of(job.device) if job.device else None)


def _attach(run: Run, compute: Compute) -> nn.Module:
    """The model to train: the base, on the device's grid if there is one, with the method in place."""
    job, base, grid = run.job, run.base, run.grid
    torch.manual_seed(job.settings.seed)
    own = {name: id(parameter) for name, parameter in base.model.named_parameters()}
    if grid:
        put_on_grid(base.model, grid["quant"], grid["block"])
    model = job.method.attach(base.model, job.options)
    learn_head(base.model, model)
    if not checkpoint.trainable(model):
        raise EdgeftError(f"{job.method.name}: attach() left nothing to train. Check its options.")
    if grid:
        check_frozen(base.model, own, job.method.name)
    if job.settings.gradient_checkpointing:
        enable = "activation_checkpointing_enable"  # its new name came with transformers 5.24
        getattr(base.model, enable, base.model.gradient_checkpointing_enable)()
        base.model.enable_input_require_grads()
    if not grid:
        settle(model, compute)
    if not base.fingerprint and any(not parameter.requires_grad for parameter in base.model.parameters()):
        raise UsageError(f"base {job.base!r}: has no weights yet, and {job.method.name} keeps some as they are. "
                         "`edgeft train full` makes a model of it.")
    return model


@contextmanager
def _base_of(model: nn.Module, objective: AnyObjective) -> Iterator[AnyObjective]:
    """The base's own loss. A fresh adapter adds nothing to it, but even an untrained soft prompt is text before it."""
    if isinstance(objective, Objective) and isinstance(model, PeftModel) and \
            model.active_peft_config.is_prompt_learning:
        with model.disable_adapter():
            yield Objective(model, objective.head, pad=objective.pad)
    else:
        yield objective


class _Loop:
    """The steps, and what is shown and saved between them."""

    def __init__(self, run: Run, compute: Compute, model: nn.Module, optimizer: torch.optim.Optimizer,
                 objective: AnyObjective, state: dict[str, Any]) -> None:
        self.inputs, self.compute, self.model, self.optimizer = run, compute, model, optimizer
        self.objective, self.state = objective, state
        self.job, self.plan, self.learns = run.job, run.plan, list(checkpoint.trainable(model).values())
        log = run.job.out / "metrics.jsonl" if is_main() else Path(os.devnull)
        self.log = log.open("a", encoding="utf-8")

    def run(self, first: int) -> None:
        settings = self.job.settings
        self.model.train()
        with self.log, tqdm(total=len(self.plan), initial=first, unit="step", desc=self.job.method.name,
                            dynamic_ncols=True, disable=not (is_main() and sys.stderr.isatty())) as bar:
            for step in range(first, len(self.plan)):
                start = time.perf_counter()
                loss, tokens, norm = self.step(step)
                self.state["seconds"] += time.perf_counter() - start
                self.state["tokens"] += tokens
                self.state["loss"] = loss if "loss" not in self.state else 0.95 * self.state["loss"] + 0.05 * loss
                self.report(bar, step + 1, loss, norm)
                if settings.eval_every and (step + 1) % settings.eval_every == 0:
                    self.write({"step": step + 1,
                                "eval": self.inputs.evaluation.measure(self.objective, settings.tokens_per_pass)})
                if (step + 1) % settings.save_every == 0 and step + 1 < len(self.plan):
                    checkpoint.save(self.job.out / "checkpoints", step + 1, self.model, self.optimizer,
                                    self.state, settings.keep)

    def step(self, step: int) -> tuple[float, int, float]:
        """One optimizer step; returns (nats per token, tokens processed, gradient norm)."""
        settings = self.job.settings
        batch = [self.inputs.tasks[task].train[line] for task, line in self.plan[step]]
        rate = self.inputs.rate * _schedule(settings, step, len(self.plan))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        learned = count(batch)
        total = torch.zeros((), device=self.compute.device)
        processes.own_dropout(settings.seed, step)
        for part, counts in processes.passes_of(batch, settings.tokens_per_pass):
            with self.compute.autocast():
                loss = counts * self.objective(part)
            (loss / learned).backward()  # of the whole batch, not of this part
            total += loss.detach()
        processes.sum_gradients(self.learns)
        norm = whole(nn.utils.clip_grad_norm_(self.learns, settings.max_grad_norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        value = processes.total(float(total))[0] / learned
        if not math.isfinite(value):
            raise EdgeftError(f"The loss is {value} at step {step + 1}. Start a new run with a lower "
                              f"--learning-rate (now {self.inputs.rate:g}).")
        return value, sum(len(example.ids) for example in batch), float(norm)

    def report(self, bar: Any, step: int, loss: float, norm: float) -> None:
        speed = self.state["tokens"] / max(self.state["seconds"], 1e-9)
        rate = self.optimizer.param_groups[0]["lr"]
        self.write({"step": step, "loss": round(loss, 5), "grad_norm": round(norm, 4), "lr": rate,
                    "tokens_per_s": round(speed, 1)})
        bar.set_postfix_str(f"loss {self.state['loss']:.3f}, {speed:,.0f} tok/s", refresh=False)
        bar.update()
        if bar.disable and (step % max(1, len(self.plan) // 10) == 0 or step == len(self.plan)):
            say(f"step {step}/{len(self.plan)}  loss {self.state['loss']:.3f}  {speed:,.0f} tokens/s")

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


def _max_length(settings: TrainSettings, base: Base) -> int:
    if settings.max_length > base.context:
        raise UsageError(f"--max-length {settings.max_length} is more than the base's context of {base.context}.")
    return settings.max_length or min(base.context, 1024)
