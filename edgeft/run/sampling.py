"""From logits to a token, in numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeft.contract.errors import EdgeftError, UsageError

Logits = np.ndarray[Any, np.dtype[np.float32]]


@dataclass
class Sampler:
    """One request's way of choosing; temperature 0 is greedy.

    Order, as in llama.cpp and transformers: repetition penalty, temperature, top-k, top-p, min-p.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    _rng: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checks = {"temperature": self.temperature >= 0, "top_k": self.top_k >= 0, "top_p": 0 < self.top_p <= 1,
                  "min_p": 0 <= self.min_p <= 1, "repetition_penalty": self.repetition_penalty > 0}
        wrong = [f"{name} {getattr(self, name)}" for name, fits in checks.items() if not fits]
        if wrong:
            raise UsageError(f"Out of range: {', '.join(wrong)}.")
        if self.seed is None:  # recorded, so that any answer can be had again
            self.seed = int(np.random.SeedSequence().generate_state(1)[0])
        self._rng = np.random.Generator(np.random.PCG64(self.seed))

    def __call__(self, logits: Logits, seen: list[int]) -> int:
        """Choose the next token from logits [vocab]; `seen` are the request's tokens so far."""
        if self.repetition_penalty != 1.0:
            logits = logits.copy()
            tokens = np.unique(seen)
            known = logits[tokens]
            logits[tokens] = np.where(known > 0, known / self.repetition_penalty, known * self.repetition_penalty)
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise EdgeftError("The model's output is not a number: the bundle or an adapter is broken.")
        if self.temperature == 0:
            return best
        return self._draw((logits - logits[best]) / self.temperature)

    def _draw(self, logits: Logits) -> int:
        """Draw from logits whose largest is 0."""
        tokens = np.arange(logits.size)
        if self.min_p > 0:  # no softmax needed: p / p_max is exp(logit)
            tokens = np.flatnonzero(logits >= np.log(self.min_p))
        if 0 < self.top_k < tokens.size:
            part = np.argpartition(logits[tokens], tokens.size - self.top_k)[-self.top_k:]
            tokens = tokens[np.sort(part)]  # a seed's draw must not hang on how numpy divides (the page draws alike)
        weights = np.exp(logits[tokens].astype(np.float64))
        weights /= weights.sum()
        if self.top_p < 1:
            order = np.argsort(-weights, kind="stable")
            keep = order[: int(np.searchsorted(np.cumsum(weights[order]), self.top_p)) + 1]
            tokens, weights = tokens[keep], weights[keep]
        edges = np.cumsum(weights)
        return int(tokens[min(np.searchsorted(edges, self._rng.random() * edges[-1], side="right"), tokens.size - 1)])
