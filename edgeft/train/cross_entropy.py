"""Summed cross-entropy that never holds all logits in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

LARGE = 2**24  # logits; below, torch's own is as small and a little faster
CHUNK = 2**22  # logits that are float32 at a time: 16 MiB


def summed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats over all rows of logits [tokens, vocabulary], computed in float32.

    torch's own keeps float32 logits, their log-softmax and their gradient: 12 bytes a logit beside the logits, where
    a vocabulary of 128,000 has a gigabyte of them for 4,096 tokens in bfloat16. Here it is the gradient alone.
    """
    if logits.numel() <= LARGE:
        return functional.cross_entropy(logits.float(), targets, reduction="sum")
    return _Chunked.apply(logits, targets)


class _Chunked(torch.autograd.Function):
    """A few rows at a time; softmax is computed again for the gradient."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows = max(1, CHUNK // logits.shape[1])
        norms, found = [], []
        for part, wanted in zip(logits.split(rows), targets.split(rows), strict=True):
            norms.append(part.float().logsumexp(-1))
            found.append(norms[-1] - part.gather(1, wanted[:, None])[:, 0].float())
        ctx.save_for_backward(logits, targets, torch.cat(norms))
        ctx.rows = rows
        return torch.cat(found).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets, norms = ctx.saved_tensors
        result = torch.empty_like(logits)
        parts = (one.split(ctx.rows) for one in (logits, targets, norms, result))
        for part, wanted, norm, out in zip(*parts, strict=True):
            soft = (part.float() - norm[:, None]).exp_()
            soft.scatter_add_(1, wanted[:, None], torch.full_like(norm, -1.0)[:, None])
            out.copy_(soft.mul_(grad))
        return result, None
