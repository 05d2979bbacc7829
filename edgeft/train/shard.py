"""`--shard`: weights, gradients and optimizer state split over the processes (FSDP2), whole again when written."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from .launch import is_main


def layers_of(base: PreTrainedModel) -> list[nn.Module]:
    """The repeated blocks of a base, as its architecture names them."""
    names = set(base._no_split_modules or ())
    return [module for module in base.modules() if type(module).__name__ in names]


def shard(model: nn.Module, base: PreTrainedModel, device: torch.device) -> None:
    """Split every layer, then what is left, in place. Gradients are summed over the processes, not averaged.

    Also what is left is split again after each forward pass: after an evaluation nobody would else do so.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in (*layers_of(base), model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other way to divide by 1


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a split tensor, in every process at once; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole value on the parameter's device, split as the parameter is."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def gather(model: nn.Module) -> None:
    """Give the main process its plain model back, on the CPU; the others help, a tensor at a time, and keep nothing."""
    plain: dict[nn.Parameter, nn.Parameter] = {}  # a tied one stays tied
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if isinstance(parameter, DTensor) and parameter not in plain:
                value = parameter.full_tensor().detach()
                kept = value.cpu() if is_main() else torch.empty(0)
                plain[parameter] = nn.Parameter(kept, requires_grad=parameter.requires_grad)
            if parameter in plain:
                module._parameters[name] = plain[parameter]
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.__class__ = _plain_class(module)


def _plain_class(module: Any) -> Any:
    """What a module was before fully_shard put its own class before it."""
    return type(module).__mro__[2]
