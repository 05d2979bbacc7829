"""Slots applied to a plain torch model, by their definition alone: what a lowered method must be equal to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from edgeft.contract import Lowered

from .case import RuleBroken, seeded
from .models import TorchBase, linears, owner_of


def check_lowered(lowered: Lowered, model: PreTrainedModel, learned: Iterable[str]) -> None:
    """RuleBroken with every slot that no layer of the base could take, and every layer that found none."""
    faults = []
    widths = linears(model)
    for module, (a, b) in lowered.lowrank.items():
        wanted = widths.get(module)
        if wanted is None:
            faults.append(f"lowrank {module}: the base has no such linear layer")
        elif a.ndim != 2 or b.ndim != 2 or (a.shape[0], b.shape[1]) != wanted or a.shape[1] != b.shape[0]:
            faults.append(f"lowrank {module}: A {list(a.shape)} B {list(b.shape)}, and the layer takes "
                          f"[{wanted[0]}, r] and [r, {wanted[1]}]")
    for module, scale in lowered.scale.items():
        if module not in widths:
            faults.append(f"scale {module}: the base has no such linear layer")
        elif tuple(scale.shape) != (widths[module][1],):
            faults.append(f"scale {module}: {list(scale.shape)}, and the layer gives [{widths[module][1]}]")
    owners = {owner_of(name, model) for name in learned} - {None}
    faults += [f"{module}: was trained, and no slot holds what it learned (if that of another module does, "
               "Lowered.moved says so)" for module in sorted(map(str, owners - lowered.modules - lowered.moved.keys()))]
    faults += _prefix_faults(lowered.prefix, model)
    if not (lowered.lowrank or lowered.scale or lowered.prefix):
        faults.append("it holds nothing")
    if faults:
        raise RuleBroken("lower() returned what export refuses:\n  " + "\n  ".join(faults))


def _prefix_faults(prefix: Mapping[int, tuple[Any, Any]], model: PreTrainedModel) -> list[str]:
    if not prefix:
        return []
    embedding: Any = model.get_input_embeddings()
    cache = TorchBase(model).keys_values(embedding.weight[:1].detach().numpy())  # one row, for its shapes
    if set(prefix) != set(cache):
        return [f"prefix: for layers {sorted(prefix)}, and the base has {sorted(cache)}"]
    rows = prefix[0][0].shape[1] if prefix[0][0].ndim == 3 else 0
    return [f"prefix layer {layer}: {kind} {list(array.shape)}, wanted [{own.shape[0]}, {rows or 'n'}, {own.shape[2]}]"
            for layer, pair in prefix.items()
            for kind, array, own in zip(("keys", "values"), pair, cache[layer], strict=True)
            if tuple(array.shape) != (own.shape[0], rows, own.shape[2]) or rows == 0]


@contextmanager
def _slots(model: nn.Module, lowered: Lowered) -> Iterator[None]:
    """`y = (base(x) + (x A) B) * s` on the layers, the layer's own bias inside base(x)."""
    def hook(name: str) -> Any:
        pair = [torch.tensor(part, dtype=torch.float32) for part in lowered.lowrank.get(name, ())]
        scale = torch.tensor(lowered.scale[name], dtype=torch.float32) if name in lowered.scale else None

        def apply(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            if pair:
                output = output + (inputs[0] @ pair[0]) @ pair[1]
            return output if scale is None else output * scale

        return apply

    handles = [model.get_submodule(name).register_forward_hook(hook(name))
               for name in sorted({*lowered.lowrank, *lowered.scale})]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def lowered_logits(model: PreTrainedModel, lowered: Lowered, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the plain base with an adapter's slots; a prefix lies in the cache and positions go on after it."""
    rows = ids.shape[0]
    past: Any = None
    length = 0
    if lowered.prefix:
        past = DynamicCache(config=model.config)
        for layer, pair in sorted(lowered.prefix.items()):
            key, value = (torch.tensor(part, dtype=torch.float32)[None].repeat(rows, 1, 1, 1) for part in pair)
            past.update(key, value, layer)
            length = key.shape[2]
    mask = torch.ones(rows, length + ids.shape[1], dtype=ids.dtype)
    with _slots(model, lowered), seeded(0):
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask, past_key_values=past).logits
    return logits
