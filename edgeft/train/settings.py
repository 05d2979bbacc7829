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
    gradient_checkpointing: bool = _option(False, "Trade speed for memory.")
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
                     "sampling_limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} must not be negative, found {getattr(self, name)}")
        if not 0 <= self.holdout < 0.9:
            raise ValueError(f"--holdout must be from 0 to below 0.9, found {self.holdout}")
