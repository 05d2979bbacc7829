"""QLoRA's base: layers that keep their codes packed in memory and make floats of them only while they compute.

Changed in place, each layer stays what it was to PEFT and transformers: an nn.Linear, an nn.Embedding, a Conv1D. Its
`weight` is made anew whenever it is read, and nothing of that size is kept for the backward pass: it dequantizes again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from edgeft.contract.errors import UsageError
from edgeft.contract.grid import Grid, Quant
from edgeft.contract.heads import SOFT_PROMPTS

CHUNK = {"cpu": 1 << 20, "cuda": 1 << 24}  # values dequantized at once: floats of those alone stand beside the result
WHOLE = 1 << 23  # weights of a layer that become floats at once; of a larger one, such as a head, a part at a time
ALONE = 0.5  # share of a device's memory above which a float base is packed by itself


class Packed:
    """What packed layers have in common: the codes as buffers, and the weight as a property."""

    codes: torch.Tensor  # [out, blocks, bytes]
    scales: torch.Tensor  # [out, blocks]
    zero_points: torch.Tensor  # [out, blocks]
    bits: int
    width: int  # input features
    turned = False  # whether `weight` is [in, out]

    @property
    def weight(self) -> torch.Tensor:
        """The weight as float32, made on the spot: changing it changes nothing."""
        rows = self.dequantize(torch.float32)
        return rows.T if self.turned else rows

    @property
    def numel(self) -> int:
        """Weights of this layer."""
        return len(self.codes) * self.width

    def slices(self) -> list[slice]:
        """Rows that are multiplied at once: a large head never becomes floats as a whole."""
        step = max(1, WHOLE // self.width)
        return [slice(start, start + step) for start in range(0, len(self.codes), step)]

    def dequantize(self, dtype: torch.dtype, picked: torch.Tensor | slice | None = None) -> torch.Tensor:
        """Rows [out, in], or the picked ones of them, exactly as Grid.dequantize, then rounded to `dtype`."""
        parts = [self.codes, self.scales, self.zero_points]
        codes, scales, zeros = parts if picked is None else [part[picked] for part in parts]
        values = codes.shape[1] * codes.shape[2] * 8 // self.bits
        made = torch.empty(len(codes), values, dtype=dtype, device=codes.device)
        step = max(1, CHUNK.get(codes.device.type, CHUNK["cuda"]) // values)
        for start in range(0, len(codes), step):
            rows = slice(start, start + step)
            whole = codes[rows]
            if self.bits == 4:
                whole = torch.stack((whole & 15, whole >> 4), dim=-1).flatten(-2)
            floats = (whole.float() - zeros[rows, :, None].float()) * scales[rows, :, None]
            made[rows] = floats.flatten(1)
        return made[:, : self.width]


class _Product(torch.autograd.Function):
    """x W^T for a packed W that never learns."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Packed) -> torch.Tensor:
        ctx.layer = layer
        parts = [functional.linear(x, layer.dequantize(x.dtype, rows)) for rows in layer.slices()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        gradient, total = gradients[0], None
        for rows in ctx.layer.slices():
            part = gradient[..., rows] @ ctx.layer.dequantize(gradient.dtype, rows)
            total = part if total is None else total.add_(part)
        return total, None


def _multiply(x: torch.Tensor, layer: Packed, bias: torch.Tensor | None) -> torch.Tensor:
    """In autocast's type where it is on, as nn.Linear computes there."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    result = cast(torch.Tensor, _Product.apply(x, layer))
    return result if bias is None else result + bias.to(result.dtype)


class PackedLinear(Packed, nn.Linear):  # type: ignore[override]
    """A linear layer."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _multiply(input, self, self.bias)


class PackedConv1D(Packed, Conv1D):
    """GPT-2's linear layer, which keeps [in, out]."""

    turned = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _multiply(x, self, self.bias)


class PackedEmbedding(Packed, nn.Embedding):  # type: ignore[override]
    """A table of which only the rows asked for become floats."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.dequantize(torch.float32, input.flatten()).reshape(*input.shape, self.width)


PLAIN: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: PackedLinear, Conv1D: PackedConv1D,
                                                 nn.Embedding: PackedEmbedding}


def pack(model: nn.Module, module: nn.Module, grid: Grid) -> None:
    """Give a layer, and those that share its tensor, packed weights in the float one's place."""
    parts = [torch.from_numpy(array) for array in (grid.codes, grid.scales, grid.zero_points)]
    _replace(model, module, parts, grid.bits, grid.in_features)


def pack_shapes(model: nn.Module, module: Any, quant: Quant) -> None:
    """The same for a model without numbers."""
    rows, width = module.weight.shape[::-1] if isinstance(module, Conv1D) else module.weight.shape
    blocks = -(-width // quant.block)
    parts = [torch.empty(rows, blocks, *rest, dtype=dtype, device="meta") for rest, dtype in (
        ((quant.block * quant.bits // 8,), torch.uint8), ((), torch.float32), ((), torch.uint8))]
    _replace(model, module, parts, quant.bits, width)


def _replace(model: nn.Module, module: nn.Module, parts: Sequence[torch.Tensor], bits: int, width: int) -> None:
    """In place, so that whoever holds the layer holds the packed one; a subclass keeps what it does around its kind."""
    shared = module._parameters["weight"]
    for layer in [one for one in model.modules() if one._parameters.get("weight") is shared]:
        plain = next(kind for kind in PLAIN if isinstance(layer, kind))
        kind, packed = type(layer), PLAIN[plain]
        del layer._parameters["weight"]
        layer.__class__ = packed if kind is plain else type(f"Packed{kind.__name__}", (kind, packed), {})
        for name, part in zip(("codes", "scales", "zero_points"), parts, strict=True):
            layer.register_buffer(name, part, persistent=False)
        layer.bits, layer.width = bits, width  # type: ignore[assignment]


def packs(setting: Literal["auto", "yes", "no"], model: nn.Module, device: torch.device) -> bool:
    """Whether to keep the base packed: auto where its floats would take over half of the device's memory."""
    if setting != "auto":
        return setting == "yes"
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else \
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return sum(parameter.numel() for parameter in model.parameters()) * 4 > ALONE * total


def packs_table(peft_type: str) -> bool:
    """Whether the embedding may be packed: for soft prompts PEFT looks for a parameter as long as the vocabulary."""
    return peft_type not in SOFT_PROMPTS


def check_packed(model: nn.Module, method: str) -> None:
    """Refuse what took over a part of the base's weights: those are packed and have not changed."""
    if "edgeft_initial" in vars(model):
        raise UsageError(f"{method}: this start takes over a part of the base's weights, which are packed. Train with "
                         "--packed no, or with another --init.")


def packed_weights(model: nn.Module) -> int:
    """Weights that stand packed, each table once."""
    return sum({module.codes.data_ptr(): module.numel for module in model.modules()
                if isinstance(module, Packed)}.values())
