"""Prompt tuning (Lester et al. 2021, https://arxiv.org/abs/2104.08691) on PEFT: learned embeddings before the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edgeft.contract import BaseView, CannotLower, Lowered, Method
from edgeft.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


def _option(default: Any, help: str, *flags: str) -> Any:
    return field(default=default, metadata={"help": help, "flags": flags})


@dataclass(frozen=True)
class PromptTuningOptions:
    """Named as in PEFT's PromptTuningConfig."""

    num_virtual_tokens: int = _option(20, "Length of the soft prompt.", "--virtual-tokens")
    prompt_tuning_init: Literal["SAMPLE_VOCAB", "RANDOM", "TEXT"] = _option(
        "SAMPLE_VOCAB", "Start from embeddings of random tokens, from random numbers, or from a text.", "--init")
    prompt_tuning_init_text: str = _option("", "The text to start from, repeated or cut to length.", "--init-text")

    def __post_init__(self) -> None:
        if self.num_virtual_tokens < 1:
            raise ValueError(f"num_virtual_tokens must be at least 1, found {self.num_virtual_tokens}")
        if (self.prompt_tuning_init == "TEXT") != bool(self.prompt_tuning_init_text):
            raise ValueError("prompt_tuning_init TEXT and prompt_tuning_init_text need each other")


class PromptTuning(Method[PromptTuningOptions]):
    """The base reads learned embeddings [n, hidden] before every input."""

    name = "prompt_tuning"
    summary = "Prompt tuning: a few learned embeddings before every input; a few kilobytes."
    Options = PromptTuningOptions
    peft_type = "PROMPT_TUNING"
    learning_rate = 5e-3
    tolerances = {"fresh": (float("inf"), "a soft prompt is there from the start, and any start is seen")}

    def attach(self, model: nn.Module, options: PromptTuningOptions) -> nn.Module:
        from peft import PromptTuningConfig, get_peft_model

        base: Any = model
        if not base.can_generate():
            raise CannotLower("prompt_tuning: a soft prompt stands before what a decoder reads, and this base is none",
                              "Use lora.")
        text = options.prompt_tuning_init_text
        return get_peft_model(base, PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=options.num_virtual_tokens,
            prompt_tuning_init=options.prompt_tuning_init, prompt_tuning_init_text=text or None,
            tokenizer_name_or_path=base.name_or_path if text else None))

    def collect(self, model: nn.Module) -> dict[str, Any]:
        from peft import get_peft_model_state_dict

        return {name: tensor.float().cpu().numpy() for name, tensor in get_peft_model_state_dict(model).items()}

    def read_peft(self, config: Mapping[str, Any]) -> PromptTuningOptions:
        # what the tensor's own shape says, and what only its first values came from
        derived = dict.fromkeys(("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
                                 "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path",
                                 "tokenizer_kwargs"))
        return super().read_peft({**config, **derived})

    def lower(self, learned: dict[str, Any], options: PromptTuningOptions, base: BaseView) -> Lowered:
        """The keys and values that the base makes of the soft prompt: nothing stands before it, so they stay."""
        embeddings = learned.get("prompt_embeddings")
        if embeddings is None or len(learned) != 1 or embeddings.ndim != 2:
            raise CannotLower(f"prompt_tuning: takes prompt_embeddings [n, hidden] alone, found {', '.join(learned)}",
                              "What else was trained would be lost.")
        return Lowered(prefix=base.keys_values(embeddings))

    def merge(self, name: str, weight: Any, learned: dict[str, Any], options: PromptTuningOptions) -> Any:
        raise CannotLower("prompt_tuning: a soft prompt cannot be folded into weights", "Export without --merge.")


@hookimpl
def register_methods(register: Any) -> None:
    register(PromptTuning())
