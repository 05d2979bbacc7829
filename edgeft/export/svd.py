"""A change of a weight as a product of two thin matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgeft.contract.slots import Array

EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class LowRank:
    """change [out, in] = (a b).T as far as `kept` says: a [in, r], b [r, out]."""

    a: Array
    b: Array
    squares: float  # the change's squared Frobenius norm
    kept: float  # of that, what a and b hold

    @property
    def rank(self) -> int:
        """Columns of a."""
        return int(self.a.shape[1])


def factorize(change: Array, rank: int | None = None, noise: float = 0.0) -> LowRank:
    """The best approximation of a change [out, in] of the given rank, or all of it that stands above the noise."""
    u, s, v = torch.linalg.svd(torch.from_numpy(np.ascontiguousarray(change)).double(), full_matrices=False)
    size = int((s > max(noise, float(s[0]) * EPS)).sum()) if rank is None else min(rank, len(s))
    root = s[:size].sqrt()
    squares = s.square()
    return LowRank((v[:size].T * root).float().numpy(), (root[:, None] * u[:, :size].T).float().numpy(),
                   float(squares.sum()), float(squares[:size].sum()))


def rounding_noise(before: Array, after: Array) -> float:
    """A bound on the largest singular value of what float32 rounding leaves in `after - before`."""
    largest = float(max(np.abs(before).max(), np.abs(after).max()))
    return 4 * EPS * largest * float(np.sqrt(before.shape[0]) + np.sqrt(before.shape[1]))
