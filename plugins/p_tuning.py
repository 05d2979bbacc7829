"""P-tuning (Liu et al. 2021, https://arxiv.org/abs/2103.10385) on PEFT: a soft prompt that a small network writes."""

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
class PTuningOptions:
    """Named as in PEFT's PromptEncoderConfig."""

    num_virtual_tokens: int = _option(20, "Length of the soft prompt.", "--virtual-tokens")
    encoder_reparameterization_type: Literal["MLP", "LSTM"] = _option(
        "MLP", "The network that writes the prompt; only training needs it.", "--encoder")
    encoder_hidden_size: int = _option(0, "Its width; 0: the base's.")
    encoder_num_layers: int = _option(2, "Layers of an LSTM.")
    encoder_dropout: float = _option(0.0, "Dropout in an LSTM.")

    def __post_init__(self) -> None:
        if self.num_virtual_tokens < 1:
            raise ValueError(f"num_virtual_tokens must be at least 1, found {self.num_virtual_tokens}")


class PTuning(Method[PTuningOptions]):
    """Like prompt tuning, its embeddings [n, hidden] made by a network that is dropped after training."""

    name = "p_tuning"
    summary = "P-tuning: a soft prompt written by a small network that only training needs."
    Options = PTuningOptions
    peft_type = "P_TUNING"
    learning_rate = 2e-4
    tolerances = {"fresh": (float("inf"), "a soft prompt is there from the start, and any start is seen")}

    def attach(self, model: nn.Module, options: PTuningOptions) -> nn.Module:
        from peft import PromptEncoderConfig, get_peft_model

        base: Any = model
        if not base.can_generate():
            raise CannotLower("p_tuning: a soft prompt stands before what a decoder reads, and this base is none",
                              "Use lora.")
        width = options.encoder_hidden_size or base.config.get_text_config().hidden_size
        tuned = get_peft_model(base, PromptEncoderConfig(
            task_type="CAUSAL_LM", **{**vars(options), "encoder_hidden_size": width}))
        _start_among_tokens(tuned)
        return tuned

    def collect(self, model: nn.Module) -> dict[str, Any]:
        from peft import get_peft_model_state_dict

        return {name: tensor.float().cpu().numpy() for name, tensor in get_peft_model_state_dict(model).items()}

    def read_peft(self, config: Mapping[str, Any]) -> PTuningOptions:
        derived = dict.fromkeys(("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"))
        return super().read_peft({**config, **derived})

    def lower(self, learned: dict[str, Any], options: PTuningOptions, base: BaseView) -> Lowered:
        """The keys and values that the base makes of the prompt, as the network last wrote it."""
        embeddings = learned.get("prompt_embeddings")
        if embeddings is None or len(learned) != 1 or embeddings.ndim != 2:
            raise CannotLower(f"p_tuning: takes prompt_embeddings [n, hidden] alone, found {', '.join(learned)}",
                              "What else was trained would be lost.")
        return Lowered(prefix=base.keys_values(embeddings))

    def merge(self, name: str, weight: Any, learned: dict[str, Any], options: PTuningOptions) -> Any:
        raise CannotLower("p_tuning: a soft prompt cannot be folded into weights", "Export without --merge.")


def _start_among_tokens(tuned: Any) -> None:
    """Give the network's first prompt the mean and spread of token embeddings: PEFT's start is far from all of them."""
    import torch

    table = tuned.word_embeddings.weight.detach().float()
    encoder = tuned.prompt_encoder[tuned.active_adapter]
    with torch.no_grad():
        first = tuned.get_prompt(1).float()
        last = encoder.mlp_head[-1]
        last.weight.mul_(table.std() / first.std().clamp(min=1e-6))
        last.bias.copy_(table.mean(0) - (first.mean((0, 1)) - last.bias) * (table.std() / first.std().clamp(min=1e-6)))


@hookimpl
def register_methods(register: Any) -> None:
    register(PTuning())
