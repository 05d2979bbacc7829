"""Several processes of one training: whose share of the work is whose, and sums over all of them.

Every process reads the same inputs and the same plan. Of each batch it takes its share of the examples, and what it
adds up (losses, tokens, gradients) is summed over all: never averaged, since shares differ in tokens. With one process
every function here changes nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from edgeft.contract.data import Example
from edgeft.contract.errors import EdgeftError, UsageError

from . import launch
from .mixture import passes

Pass = tuple[list[Example], float]  # examples, and how often they count: once or not at all
BUCKET = 2**23  # numbers that are sent at once
_LOST = re.compile(r"\b(gloo|nccl|connection|socket|broken pipe|rendezvous|TCPStore)\b", re.IGNORECASE)
_FOREIGN = {"ACCELERATE_USE_FSDP": "--use_fsdp", "ACCELERATE_USE_DEEPSPEED": "--use_deepspeed",
            "ACCELERATE_USE_MEGATRON_LM": "--use_megatron_lm"}


def count() -> int:
    """Processes that have met."""
    return dist.get_world_size() if dist.is_initialized() else 1


def index() -> int:
    """This one's number among them."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def joined() -> Iterator[torch.device]:
    """Meet the other processes of this launch, and give the device of this one.

    When another one ends before its time, this one ends with a message instead of waiting for it.
    """
    for variable, flag in _FOREIGN.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise UsageError(f"accelerate launch {flag}: training shards by itself. Leave {flag} out (also of "
                             "accelerate's config file) and give `edgeft train` --shard.")
    device = _device()
    try:
        if launch.count() > 1:
            _meet(device)
        yield device
        if count() > 1:
            dist.destroy_process_group()
    except RuntimeError as error:
        if launch.count() == 1 or not _LOST.search(str(error)):
            raise
        raise EdgeftError("Another process of this training has ended before its time, so this one ends too "
                          f"({str(error).splitlines()[0][:200]}).") from None


def _meet(device: torch.device) -> None:
    """Gradients go from device to device; counts and digests are on the CPU everywhere."""
    if device.type == "cpu":
        dist.init_process_group("gloo")
    else:
        own = dist.get_default_backend_for_device(device)
        dist.init_process_group(f"cpu:gloo,{device.type}:{own}", device_id=device)


def _device() -> torch.device:
    """This process's own GPU where there are any."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= torch.accelerator.device_count():
        raise UsageError(f"process {launch.index()}: wants GPU {local} of {torch.accelerator.device_count()}. "
                         "Start at most one process for each GPU.")
    torch.accelerator.set_device_index(local)
    return torch.device(found.type, local)


def agree(inputs: Callable[[], Iterable[str]]) -> None:
    """EdgeftError unless all processes have read the same; else they would wait for each other forever."""
    if count() == 1:
        return
    digest = hashlib.sha256("\n".join(inputs()).encode()).digest()
    own = torch.tensor([int.from_bytes(digest[:8], signed=True)])
    found = [torch.empty_like(own) for _ in range(count())]
    dist.all_gather(found, own)
    others = [str(rank) for rank, one in enumerate(found) if one != found[0]]
    if others:
        raise EdgeftError(f"process {', '.join(others)} of {count()}: has read another base, other data or another "
                          "checkpoint than process 0. Give every process the same files.")


def passes_of(batch: Sequence[Example], limit: int) -> list[Pass]:
    """This process's passes over a batch; together the processes' passes hold each example once."""
    ordered = sorted(batch, key=lambda example: -len(example.ids))
    return _even([passes(ordered[rank :: count()], limit) for rank in range(count())], ordered[-1:])


def share_of(parts: Sequence[list[Example]]) -> list[Pass]:
    """This process's share of passes that are the same for all."""
    return _even([list(parts[rank :: count()]) for rank in range(count())], parts[-1] if parts else [])


def _even(shares: Sequence[list[list[Example]]], filler: Sequence[Example]) -> list[Pass]:
    """All make as many passes as the busiest, since a sharded model answers only all of them together."""
    own = shares[index()]
    spare = max(len(share) for share in shares) - len(own)
    return [(part, 1.0) for part in own] + [(list(filler), 0.0)] * spare


def total(*values: float) -> list[float]:
    """Each value summed over all processes."""
    if count() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return [float(value) for value in sums]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes in place; one that no process has stays none, as in one process."""
    learns = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]  # FSDP has summed its own
    if count() == 1 or not learns:
        return
    has = torch.tensor([parameter.grad is not None for parameter in learns], dtype=torch.int32)
    dist.all_reduce(has)
    for bucket in _buckets([parameter for parameter, found in zip(learns, has, strict=True) if found]):
        flat = torch.cat([torch.zeros_like(one).flatten() if one.grad is None else one.grad.flatten()
                          for one in bucket])
        dist.all_reduce(flat)
        for one, part in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
            one.grad = part.view_as(one)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """In order, so many that one message is neither small nor a second copy of everything."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(one.numel() for one in bucket) + parameter.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def equal_start(parameters: Iterable[nn.Parameter]) -> None:
    """What learns begins as it does in the main process, whatever another processor made of the same seed."""
    if count() > 1:
        with torch.no_grad():
            for parameter in parameters:
                dist.broadcast(parameter.data, src=0)


def own_dropout(seed: int, step: int) -> None:
    """Other examples, other dropout: the main process goes on with its own stream, the others draw from theirs."""
    if index():
        digest = hashlib.sha256(f"{seed} {index()} {step}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7]))
