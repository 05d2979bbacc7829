"""Prompt lookup: what followed the last tokens when they stood there before is likely to follow them again.

Source: github.com/apoorvumang/prompt-lookup-decoding. Drafts are checked by the model itself in one pass, so the
greedy answer stays what it is; how many are worth a pass is learned from what passes cost and drafts were right.
"""

from __future__ import annotations

from collections.abc import Sequence

GRAMS = (4, 3, 2)  # tokens that must agree; the longest match is followed
LENGTHS = (2, 4, 8, 16)  # tokens of a draft
LEAST = 1.1  # expected gain below which no draft is made
TRUST = 0.02  # how much a draft is trusted again, per token without one
SLOPE = 0.15  # what one more token in a pass costs, in passes of one token, until it is measured


class Lookup:
    """One request's tokens so far, indexed by their n-grams."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self._after: dict[int, dict[tuple[int, ...], int]] = {size: {} for size in GRAMS}
        self._match = dict.fromkeys(GRAMS, 0)
        self.rate = 0.5  # share of drafted tokens that were right, lately
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """Take a token in."""
        self.tokens.append(token)
        end = len(self.tokens)
        for size in GRAMS:
            gram = tuple(self.tokens[-size:])
            self._match[size] = self._after[size].get(gram, 0)
            self._after[size][gram] = end

    def draft(self, costs: Costs, most: int) -> list[int]:
        """Tokens that may come next, as many as are worth trying; mostly none."""
        start = next((self._match[size] for size in GRAMS if self._match[size]), 0)
        if not start:
            return []
        there = min(most, len(self.tokens) - start)
        best, gain = 0, LEAST
        for length in LENGTHS:
            length = min(length, there)
            expected = 1 + sum(self.rate**position for position in range(1, length + 1))
            if length and expected / costs.of(1 + length) > gain:
                best, gain = length, expected / costs.of(1 + length)
        if not best:
            self.rate = min(0.5, self.rate + TRUST)
        return self.tokens[start : start + best]

    def learn(self, drafted: int, right: int) -> None:
        """How many of a draft's tokens were right."""
        self.rate = min(0.95, 0.6 * self.rate + 0.4 * (right / drafted))


class Costs:
    """What a pass costs by its tokens, in passes of one token; learned as it runs, one for all requests."""

    def __init__(self) -> None:
        self._single = self._slope = 0.0

    def of(self, tokens: int) -> float:
        """Of a pass of so many tokens."""
        return 1 + (tokens - 1) * (self._slope or SLOPE)

    def learn(self, tokens: int, seconds: float) -> None:
        """Note what one pass took."""
        if tokens == 1:
            self._single = min(seconds, 1.02 * self._single) if self._single else seconds  # one slow pass says nothing
        elif self._single:
            slope = max(seconds / self._single - 1, 0.01) / (tokens - 1)
            self._slope = 0.8 * self._slope + 0.2 * slope if self._slope else slope
