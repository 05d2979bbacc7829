"""Prefix tuning (Li and Liang 2021, https://arxiv.org/abs/2101.00190) on PEFT: learned keys and values per layer."""

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
class PrefixTuningOptions:
    """Named as in PEFT's PrefixTuningConfig, `start` apart."""

    num_virtual_tokens: int = _option(20, "Length of the prefix.", "--virtual-tokens")
    prefix_projection: bool = _option(False, "Let a network write the prefix; only training needs it.")
    encoder_hidden_size: int = _option(0, "Width of that network; 0: the base's.")
    start: Literal["tokens", "random", "zero"] = _option(
        "tokens", "Start from the base's own keys and values of random tokens, from random numbers, or from zeros.",
        "--init")

    def __post_init__(self) -> None:
        if self.num_virtual_tokens < 1:
            raise ValueError(f"num_virtual_tokens must be at least 1, found {self.num_virtual_tokens}")


class PrefixTuning(Method[PrefixTuningOptions]):
    """Every layer's attention sees n learned keys and values before the sequence's own."""

    name = "prefix_tuning"
    summary = "Prefix tuning: learned keys and values before the sequence in every layer."
    Options = PrefixTuningOptions
    peft_type = "PREFIX_TUNING"
    learning_rate = 1e-2
    tolerances = {"fresh": (float("inf"), "a soft prompt is there from the start, and any start is seen")}

    def attach(self, model: nn.Module, options: PrefixTuningOptions) -> nn.Module:
        from peft import PrefixTuningConfig, get_peft_model

        base: Any = model
        if not base.can_generate():
            raise CannotLower("prefix_tuning: a prefix stands before what a decoder reads, and this base is none",
                              "Use lora.")
        text_config = base.config.get_text_config()
        projected: Any = {"prefix_projection": True, "encoder_hidden_size": options.encoder_hidden_size
                     or text_config.hidden_size} if options.prefix_projection else {}
        first = None if options.prefix_projection or options.start != "tokens" else _own_prefix(base, options)
        heads = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
        size = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
        try:
            tuned: Any = get_peft_model(base, PrefixTuningConfig(
                task_type="CAUSAL_LM", num_virtual_tokens=options.num_virtual_tokens,
                token_dim=heads * size, num_attention_heads=heads,
                init_weights="zero" if options.start == "zero" else None, **projected))
        except ValueError as error:
            raise CannotLower(f"prefix_tuning: {str(error).splitlines()[0]}", "") from None
        if first is not None:
            tuned.prompt_encoder[tuned.active_adapter].load_prompt_embeddings(first)
        return tuned

    def collect(self, model: nn.Module) -> dict[str, Any]:
        from peft import get_peft_model_state_dict

        return {name: tensor.float().cpu().numpy() for name, tensor in get_peft_model_state_dict(model).items()}

    def read_peft(self, config: Mapping[str, Any]) -> PrefixTuningOptions:
        derived = dict.fromkeys(("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
                                 "init_weights"))
        return super().read_peft({**config, **derived})

    def lower(self, learned: dict[str, Any], options: PrefixTuningOptions, base: BaseView) -> Lowered:
        """Unpack [n, layers * 2 * kv_heads * head_dim]; it is put into the cache as it is, so keys are not rotated."""
        flat = learned.get("prompt_embeddings")
        if flat is None or len(learned) != 1 or flat.ndim != 2:
            raise CannotLower(f"prefix_tuning: takes prompt_embeddings [n, width] alone, found {', '.join(learned)}",
                              "What else was trained would be lost.")
        layers = _size(base.config, "num_hidden_layers", "n_layer", "num_layers")
        heads = _size(base.config, "num_key_value_heads", "num_attention_heads", "n_head", "num_heads")
        if not layers or not heads or flat.shape[1] % (2 * layers * heads):
            raise CannotLower(f"prefix_tuning: {flat.shape[1]} numbers per token do not divide into keys and values of "
                              f"{layers} layers with {heads} heads", "It was trained on another base.")
        parts = flat.reshape(len(flat), layers, 2, heads, -1).transpose(1, 2, 3, 0, 4)
        return Lowered(prefix={layer: (key, value) for layer, (key, value) in enumerate(parts)})

    def merge(self, name: str, weight: Any, learned: dict[str, Any], options: PrefixTuningOptions) -> Any:
        raise CannotLower("prefix_tuning: a prefix cannot be folded into weights", "Export without --merge.")


def _size(config: Mapping[str, Any], *names: str) -> int:
    """The first of a config's entries that is there."""
    return next((int(config[name]) for name in names if config.get(name)), 0)


def _own_prefix(model: Any, options: PrefixTuningOptions) -> Any:
    """What the base's caches hold after random tokens, as PEFT stores a prefix: a start that it understands."""
    import torch

    vocabulary = model.get_input_embeddings().weight
    ids = torch.randint(0, len(vocabulary), (1, options.num_virtual_tokens), device=vocabulary.device)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    pairs = [part[0].transpose(0, 1).flatten(1) for layer in cache.layers for part in (layer.keys, layer.values)]
    return torch.cat(pairs, dim=1).float()


@hookimpl
def register_methods(register: Any) -> None:
    register(PrefixTuning())
