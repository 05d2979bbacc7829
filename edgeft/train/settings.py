"""The options that every method shares; flags, TOML keys and help come from here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal


def _option(default: Any, help: str, *flags: str) -> Any:
    return field(default=default, metadata={"help": help, "flags": flags})


@dataclass(frozen=True)
class TrainSettings:
    """How to train, whatever the method."""

    epochs: float = _option(1.0, "Passes over the data.")
    max_steps: int = _option(0, "Stop after this many steps; 0: as the epochs say.")
    sampling: Literal["proportional", "equal", "temperature"] = _option(
        "proportional", "How much of an epoch each task gets: by its size, all the same, or size^(1/T).")
    sampling_temperature: float = _option(2.0, "T of --sampling temperature; 1 is proportional, large is equal.")
    sampling_limit: int = _option(0, "A task counts as at most this many examples when shares are made; 0: as it is.")
    batch_size: int = _option(16, "Examples per step.")
    learning_rate: float = _option(0.0, "Peak learning rate; 0: the method's own, scaled by 2048 / hidden size.",
                                   "--lr")
    schedule: Literal["cosine", "linear", "constant"] = _option("cosine", "Learning rate after the warm-up.")
    warmup: float = _option(0.03, "Share of the steps with a rising learning rate.")
    weight_decay: float = _option(0.0, "AdamW's weight decay.")
    max_grad_norm: float = _option(1.0, "Clip the gradient to this norm.")
    max_length: int = _option(0, "Tokens per example; 0: the base's context, at most 1024. Longer text is split; a "
                                 "longer prompt with completion is an error.")
    separator: str = _option("\n", "Between prompt and completion; recorded, and applied by the runner.")
    holdout: float = _option(0.02, "Share of each data file kept for evaluation where no --eval-data is given.")
    eval_every: int = _option(0, "Steps between evaluations; 0: at the end only.")
    save_every: int = _option(200, "Steps between checkpoints.")
    keep: int = _option(2, "Checkpoints kept.")
    tokens_per_pass: int = _option(8192, "Padded tokens in one forward pass; a batch is split to fit.")
    precision: Literal["auto", "fp32", "bf16"] = _option("auto", "auto: bf16 on a GPU, fp32 on a CPU.")
    quant: Literal["auto", "int4", "int8"] = _option(
        "auto", "Train on this integer grid; auto: on the --device's, without one on floats.")
    block: Literal[0, 16, 32, 64, 128, 256] = _option(0, "Weights of the grid that share a scale; 0: the --device's, "
                                                      "else 128.")
    asymmetric: bool = _option(False, "A grid with zero points; without this as the --device has it.")
    rounding: Literal["auto", "rtn", "mse"] = _option("auto", "rtn: to nearest; mse: the scale with the least squared "
                                                      "error; auto: the --device's, else rtn.")
    packed: Literal["auto", "yes", "no"] = _option(
        "auto", "Keep a base that is on a grid as packed integers in memory (QLoRA), slower and a seventh of the size; "
                "auto: where its floats would take over half of the memory.")
    gradient_checkpointing: bool = _option(False, "Trade speed for memory.")
    replay: str = _option("", "FILE:SHARE: mix in text that the base knew, so that SHARE of all tokens with loss are "
                              "of it.")
    kl_to_base: float = _option(0.0, "Add to the loss (nats per token) this times KL(base || tuned), the mean over a "
                                     "batch's tokens with loss.")
    l2_to_start: float = _option(0.0, "Full tuning: add to the loss this times the squared distance of the weights "
                                      "from where they began, summed over all of them but a new head.")
    interpolate: float = _option(1.0, "Full tuning: in the end weights = start + this * (tuned - start), as WiSE-FT. "
                                      "An adapter has its scale for that.")
    stop_at_loss: float = _option(0.0, "Stop at the first evaluation (--eval-every) in which no set's loss is above "
                                       "this; 0: never.")
    shard: bool = _option(False, "Split weights, gradients and optimizer state over the processes (FSDP).")
    compile: bool = _option(False, "Compile each layer (torch.compile): for long runs on a GPU.")
    seed: int = _option(0, "Of the initial weights, the order of the data and dropout.")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"--{name.replace('_', '-')} must be a finite number, found {value}")
        if self.max_grad_norm <= 0:
            raise ValueError(f"--max-grad-norm must be above 0, found {self.max_grad_norm}")
        if self.seed >= 2**63:
            raise ValueError(f"--seed must be below 2^63, found {self.seed}")
        if self.max_length == 1:
            raise ValueError("--max-length must be at least 2: nothing predicts a first token")
        if self.sampling_temperature < 1:
            raise ValueError(f"--sampling-temperature must be at least 1, found {self.sampling_temperature}")
        for name in ("batch_size", "save_every", "tokens_per_pass", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, found {getattr(self, name)}")
        if self.epochs <= 0 and self.max_steps <= 0:
            raise ValueError(f"--epochs must be above 0, found {self.epochs}")
        for name in ("learning_rate", "warmup", "weight_decay", "max_length", "eval_every", "max_steps", "seed",
                     "sampling_limit", "kl_to_base", "l2_to_start", "stop_at_loss"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} must not be negative, found {getattr(self, name)}")
        if not 0 < self.interpolate <= 1:
            raise ValueError(f"--interpolate must be above 0 and at most 1, found {self.interpolate}")
        if self.stop_at_loss and not self.eval_every:
            raise ValueError("--stop-at-loss needs --eval-every: how many steps lie between evaluations")
        split_replay(self.replay)
        if not 0 <= self.holdout < 0.9:
            raise ValueError(f"--holdout must be from 0 to below 0.9, found {self.holdout}")


def split_replay(text: str) -> tuple[str, float]:
    """`FILE:SHARE` as (path, share); ("", 0) of no text, ValueError of any other."""
    path, _, share = text.rpartition(":")
    try:
        found = float(share) if text else 0.0
    except ValueError:
        found = -1.0
    if text and (not path or not 0 < found < 1):
        raise ValueError(f"--replay takes FILE:SHARE with a share between 0 and 1, found {text!r}")
    return path, found
