"""What training on a packed base takes in memory, counted on a model of the same shapes that holds no numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM

from edgeft.contract.grid import Quant

from .checkpoint import trainable
from .grid import on_grid
from .packed import CHUNK, Packed, pack_shapes

ATTENTION = "edgeft_plan"
RUNTIME = 600 << 20  # CUDA's own context and cuBLAS's workspaces
TEMPORARY = 10  # bytes for each value that is being dequantized: codes, floats and the product with the scale


@dataclass(frozen=True)
class Plan:
    """Bytes by purpose."""

    codes: int  # with scales and zero points
    floats: int  # norms, biases, tables that stay float
    adapter: int  # its weights, gradients and AdamW's two moments, float32
    dequantized: int  # the largest weight in bfloat16, and what is being made of it
    activations: int  # what one pass saves for its backward pass, as if all of it were float32
    logits: int  # of every token of the pass, their float32 copy and their gradient
    runtime: int = RUNTIME

    @property
    def total(self) -> int:
        """All of it at once: the peak is below this."""
        return sum(vars(self).values())


def plan(config: Any, grid: Quant, *, rank: int = 16, tokens: int = 2048, checkpointing: bool = True) -> Plan:
    """A LoRA of `rank` on every linear layer, passes of `tokens` tokens that all carry loss, bf16 autocast on a GPU."""
    AttentionInterface.register(ATTENTION, _attention)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=ATTENTION)
    largest = max(module.weight.numel() for _, module in on_grid(base))
    for _, module in list(on_grid(base)):
        pack_shapes(base, module, grid)
    base.requires_grad_(False)
    codes = _bytes({one for module in base.modules() if isinstance(module, Packed)
                    for one in (module.codes, module.scales, module.zero_points)})
    floats = _bytes(set(base.parameters()))
    model: Any = get_peft_model(base, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"),
                                low_cpu_mem_usage=True)
    adapter = 4 * sum(parameter.numel() * 4 for parameter in trainable(model).values())
    return Plan(codes, floats, adapter, 2 * largest + TEMPORARY * CHUNK["cuda"],
                _activations(model, base, tokens, checkpointing), 3 * 4 * tokens * config.vocab_size)


def _activations(model: nn.Module, base: Any, tokens: int, checkpointing: bool) -> int:
    """Bytes saved for the backward pass; with checkpointing each layer's input, and one layer's own at a time."""
    saved: dict[int, int] = {}
    kept: list[torch.Tensor] = []  # alive, so that no address comes twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        kept.append(tensor)
        return tensor

    known = {one.untyped_storage()._cdata for one in [*base.parameters(), *base.buffers()]}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=torch.zeros(1, tokens, dtype=torch.long, device="meta"), use_cache=False, logits_to_keep=1,
              attention_mask=torch.zeros(1, 1, 1, 1, device="meta"))  # of this shape it is not looked into
    total = sum(size for place, size in saved.items() if place not in known)
    config = base.config.get_text_config()
    if not checkpointing:
        return total
    return config.num_hidden_layers * tokens * config.hidden_size * 4 + total // config.num_hidden_layers


def _attention(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any,
               **named: Any) -> tuple[torch.Tensor, None]:
    """In shape, and in what it saves, a fused attention: nothing of tokens x tokens."""
    groups = query.shape[1] // key.shape[1]
    both = (key * value).repeat_interleave(groups, dim=1)
    return (query * both).transpose(1, 2).contiguous(), None


def _bytes(tensors: set[torch.Tensor]) -> int:
    return sum(one.numel() * one.itemsize for one in tensors)
