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
from edgeft.contract.data import Example
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.files import disk_errors, write_text

from . import checkpoint, processes
from .base import Base, load_base
from .classify import check_method, learn_head
from .compute import Compute, compile_errors, compute_on, place, settle
from .forgetting import measure_forgetting
from .grid import check_frozen, describe, grid_of, put_on_grid, remember_floats
from .held_out import load_evaluation
from .job import Job, begin
from .labels import labels_of
from .launch import is_main
from .limits import Limits
from .mixture import REPLAY, count, load_replay, load_tasks
from .objective import AnyObjective, Objective, make_objective
from .packed import check_packed, packs, packs_table
from .plan import add_replay, plan_batches
from .record import Run, announce, lines_up_to, record, say
from .reference import Reference
from .run_folder import write_run
from .settings import TrainSettings, split_replay
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
    reference = Reference(run.base, model, job.base, run.base.fingerprint, run.grid)
    limits = Limits(settings, run.base, model, reference, job.method.name)

    state: dict[str, Any] = {"seconds": 0.0, "tokens": 0}
    if path is not None:
        state = checkpoint.load(path, model, optimizer)
        say(f"resumed at step {state['step']} of {len(run.plan)} from {path}")
    else:
        if is_main():
            begin(job)
        with _base_of(model, objective) as base, compute.autocast():  # PEFT may take our forward off for this
            state["base"] = run.evaluation.measure(base, settings.tokens_per_pass)
    _Loop(run, compute, model, optimizer, objective, state, limits).run(first=int(state.get("step", 0)))

    limits.interpolate()
    with compute.autocast():  # the base in the same precision
        forgetting = measure_forgetting(run, objective, reference, state["tokens"])
    found = record(run, model, state, run.evaluation.measure(objective, settings.tokens_per_pass), forgetting)
    if compute.sharded:
        gather(model)
    if is_main():
        write_run(job, run.base, model, found)
    return found


def _read_inputs(job: Job) -> Run:
    """Base, examples, evaluation sets and the plan of all batches."""
    settings = job.settings
    quant = grid_of(job.device, settings)
    base = load_base(job.base, seed=settings.seed, labels=labels_of(Path(spec.data) for spec in job.trained))
    check_method(job.method, base.model)
    length = _max_length(settings, base)
    tasks = load_tasks(job.trained, base, separator=settings.separator, max_length=length,
                       holdout=0.0 if job.eval_data else settings.holdout)
    rate = settings.learning_rate or job.method.learning_rate * 2048 / base.hidden_size
    plan = plan_batches(tasks, settings)
    if settings.replay:
        tasks.append(load_replay(split_replay(settings.replay), tasks, base, separator=settings.separator,
                                 max_length=length, holdout=settings.holdout))
    return Run(job, base, tasks, load_evaluation(job, tasks, base, length), add_replay(plan, tasks, settings), rate,
               quant)


def _attach(run: Run, compute: Compute) -> nn.Module:
    """The model to train: the base, on its grid if there is one, with the method in place."""
    job, base, grid = run.job, run.base, run.quant
    torch.manual_seed(job.settings.seed)
    if grid:
        packed = packs(job.settings.packed, base.model, compute.device)
        if base.fingerprint:
            remember_floats(base.model, base.folder)
        digests = put_on_grid(base.model, grid, packed=packed, table=packs_table(job.method.peft_type))
        run.grid = {**describe(grid, job.device, digests), "packed": packed}
    own = {name: id(parameter) for name, parameter in base.model.named_parameters()}  # after packing frees some
    model = job.method.attach(base.model, job.options)
    learn_head(base.model, model)
    if not checkpoint.trainable(model):
        raise EdgeftError(f"{job.method.name}: attach() left nothing to train. Check its options.")
    if grid:
        check_frozen(base.model, own, job.method.name)
        if run.grid and run.grid["packed"]:
            check_packed(model, job.method.name)
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
            (model.active_peft_config.is_prompt_learning or getattr(model, "edgeft_starts_changed", False)):
        with model.disable_adapter():
            yield Objective(model, objective.head, pad=objective.pad)
    else:
        yield objective


class _Loop:
    """The steps, and what is shown and saved between them."""

    def __init__(self, run: Run, compute: Compute, model: nn.Module, optimizer: torch.optim.Optimizer,
                 objective: AnyObjective, state: dict[str, Any], limits: Limits) -> None:
        self.limits = limits
        self.inputs, self.compute, self.model, self.optimizer = run, compute, model, optimizer
        self.objective, self.state = objective, state
        self.job, self.plan, self.learns = run.job, run.plan, list(checkpoint.trainable(model).values())
        log = run.job.out / "metrics.jsonl" if is_main() else Path(os.devnull)
        if is_main() and log.is_file():
            write_text(log, lines_up_to(log, int(state.get("step", 0))))
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
                self.report(bar, step + 1, loss, norm, self.limits.report(count(self.batch(step))))
                if settings.eval_every and (step + 1) % settings.eval_every == 0:
                    found = self.inputs.evaluation.measure(self.objective, settings.tokens_per_pass, probe=True)
                    self.write({"step": step + 1, "eval": found})
                    if self.reached(found["sets"]):
                        say(f"stopped at step {step + 1} of {len(self.plan)}: no loss is above {settings.stop_at_loss}")
                        del self.plan[step + 1 :]
                        break
                if (step + 1) % settings.save_every == 0 and step + 1 < len(self.plan):
                    self.flush()
                    checkpoint.save(self.job.out / "checkpoints", step + 1, self.model, self.optimizer,
                                    self.state, settings.keep)
            self.flush()

    def reached(self, sets: dict[str, Any]) -> bool:
        """Whether an evaluation says that training can stop."""
        losses = [found["loss"] for name, found in sets.items() if name != REPLAY]
        return bool(losses) and max(losses) <= self.job.settings.stop_at_loss

    def step(self, step: int) -> tuple[float, int, float]:
        """One optimizer step; returns (nats per token, tokens processed, gradient norm)."""
        settings = self.job.settings
        batch = self.batch(step)
        rate = self.inputs.rate * _schedule(settings, step, len(self.plan))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        learned = count(batch)
        total = torch.zeros((), device=self.compute.device)
        processes.own_dropout(settings.seed, step)
        for part, counts in processes.passes_of(batch, settings.tokens_per_pass):
            with self.compute.autocast():
                wanted, loss = self.limits.loss(self.objective, part, counts)
            (wanted / learned).backward()  # of the whole batch, not of this part
            total += loss
        processes.sum_gradients(self.learns)
        self.limits.pull()  # once, on what is summed
        norm = whole(nn.utils.clip_grad_norm_(self.learns, settings.max_grad_norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        value = processes.total(float(total))[0] / learned
        if not math.isfinite(value):
            raise EdgeftError(f"The loss is {value} at step {step + 1}. Start a new run with a lower "
                              f"--learning-rate (now {self.inputs.rate:g}).")
        return value, sum(len(example.ids) for example in batch), float(norm)

    def batch(self, step: int) -> list[Example]:
        """The examples of a step."""
        return [self.inputs.tasks[task].train[line] for task, line in self.plan[step]]

    def report(self, bar: Any, step: int, loss: float, norm: float, limits: dict[str, float]) -> None:
        speed = self.state["tokens"] / max(self.state["seconds"], 1e-9)
        rate = self.optimizer.param_groups[0]["lr"]
        self.write({"step": step, "loss": round(loss, 5), "grad_norm": round(norm, 4), "lr": rate,
                    "tokens_per_s": round(speed, 1), **limits})
        bar.set_postfix_str(f"loss {self.state['loss']:.3f}, {speed:,.0f} tok/s", refresh=False)
        bar.update()
        if bar.disable and (step % max(1, len(self.plan) // 10) == 0 or step == len(self.plan)):
            say(f"step {step}/{len(self.plan)}  loss {self.state['loss']:.3f}  {speed:,.0f} tokens/s")

    def flush(self) -> None:
        """Put the log on the disk: what a checkpoint or a finished run counts on must survive a power cut."""
        if is_main():
            os.fsync(self.log.fileno())

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
