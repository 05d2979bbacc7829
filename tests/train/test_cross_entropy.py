"""The cross-entropy in chunks is torch's own, in value and gradient, and never holds all logits in float32."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from edgeft.train import cross_entropy
from edgeft.train.cross_entropy import summed_cross_entropy


def found(logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, torch.Tensor]:
    own = logits.clone().requires_grad_(True)
    loss = summed_cross_entropy(own, targets)
    (loss / 3).backward()
    assert own.grad is not None
    return float(loss.detach()), own.grad


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 700, 10**6])
def test_chunks_equal_the_whole(monkeypatch: pytest.MonkeyPatch, kind: torch.dtype, chunk: int) -> None:
    torch.manual_seed(0)
    logits, targets = (torch.randn(37, 101) * 5).to(kind), torch.randint(0, 101, (37,))
    whole, gradient = found(logits, targets)
    assert whole == pytest.approx(float(functional.cross_entropy(logits.float(), targets, reduction="sum")), rel=1e-6)
    monkeypatch.setattr(cross_entropy, "LARGE", 0)
    monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    loss, other = found(logits, targets)
    assert loss == pytest.approx(whole, rel=1e-6)
    assert other.dtype == kind
    torch.testing.assert_close(other, gradient, rtol=1e-2 if kind == torch.bfloat16 else 1e-5, atol=1e-6)
    shifted, _ = found(logits, targets.roll(1))
    assert shifted != pytest.approx(whole, rel=1e-3)


def test_no_tensor_as_large_as_the_logits_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        """The most float32 numbers in one result."""

        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            for one in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(one, torch.Tensor) and one.dtype == torch.float32:
                    self.size = max(self.size, one.numel())
            return result

    logits, targets = torch.randn(64, 100).bfloat16(), torch.zeros(64, dtype=torch.long)
    sizes = []
    monkeypatch.setattr(cross_entropy, "CHUNK", 400)
    for large in (10**6, 0):
        monkeypatch.setattr(cross_entropy, "LARGE", large)
        with Largest() as largest:
            found(logits, targets)
        sizes.append(largest.size)
    assert sizes == [6400, 400]
