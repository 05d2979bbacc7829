"""Tiny random bases, and a base as a method may ask about it, answered by torch."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edgeft.contract import BaseView
from edgeft.contract.slots import Array

VOCABULARY, LENGTH, ROWS = 96, 9, 2
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0}
UNTIED = ("llama",)  # the others tie their head to the embedding


def tiny_base(model_type: str, seed: int = 0, tied: bool | None = None) -> PreTrainedModel:
    """A random decoder of an architecture, the same one for the same seed; no bias is 0 and no norm is 1."""
    known = AutoConfig.for_model(model_type)  # PEFT believes a size that the architecture itself does not read
    sizes = {name: size for name, size in SIZES.items() if hasattr(known, name)}
    config = AutoConfig.for_model(model_type, **sizes,
                                  tie_word_embeddings=model_type not in UNTIED if tied is None else tied)
    for name in [name for name in vars(config) if name.endswith("pdrop")]:  # gpt2's: five steps must outdo no noise
        setattr(config, name, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return cast(PreTrainedModel, model.eval())


def token_ids() -> torch.Tensor:
    """Tokens [rows, length] that every rule asks about."""
    return torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(7))


def linears(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Linear layers: name -> (in, out)."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):  # gpt2's, which keeps its weight as [in, out]
            found[name] = (int(module.weight.shape[0]), int(module.weight.shape[1]))
    return found


def owner_of(name: str, model: nn.Module) -> str | None:
    """The module of the base that a learned tensor is named after, as export finds it; None if there is none."""
    modules = {tensor.rpartition(".")[0] for tensor in model.state_dict()}
    parts = name.split(".")
    return next((".".join(parts[:size]) for size in range(len(parts) - 1, 0, -1)
                 if ".".join(parts[:size]) in modules), None)


class TorchBase(BaseView):
    """What the exporter answers from a folder, answered from a model in memory."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    @property
    def config(self) -> Mapping[str, Any]:
        return self.model.config.to_dict()

    def names(self) -> Collection[str]:
        return list(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def tensor(self, name: str) -> Array:
        return self._state[name]

    def linears(self) -> Mapping[str, tuple[int, int]]:
        return linears(self.model)

    @torch.inference_mode()
    def keys_values(self, embeddings: Array) -> dict[int, tuple[Array, Array]]:
        rows = torch.tensor(embeddings, dtype=torch.float32)[None]
        cache: Any = DynamicCache(config=self.model.config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some architectures have a newer name for past_key_values
            self.model(inputs_embeds=rows, past_key_values=cache, use_cache=True)
        return {index: (layer.keys[0].numpy(), layer.values[0].numpy()) for index, layer in enumerate(cache.layers)}
