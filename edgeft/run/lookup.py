"""Prompt lookup: what followed the last tokens when they stood there before is likely to follow them again.

Before: in this prompt and answer, or else in the answers that the same adapters gave lately, whose form is alike.

Source: github.com/apoorvumang/prompt-lookup-decoding. Drafts are checked by the model itself in one pass, so the
greedy answer stays what it is; how many are worth a pass is learned from what passes cost and drafts were right.
"""

from __future__ import annotations

from collections.abc import Sequence

GRAMS = (4, 3, 2)  # tokens that must agree; the longest match is followed
LENGTHS = (2, 4, 7, 11, 15)  # tokens of a draft
LEAST = 1.1  # expected gain below which no draft is made
REMEMBERED = 4096  # tokens of earlier answers
LEARN = 0.1  # weight of the newest draft in what is known of drafts
TRUST = 0.002  # how much a kind of match is trusted again, each time it is let pass
SLOPE = 0.15  # what one more token in a pass costs, in passes of one token, until it is measured


class Habits:
    """What is known of drafts with some adapters: how often the first token is right, and each next."""

    def __init__(self) -> None:
        # by how many tokens agree; below 0: with earlier answers
        self.first = {4: 0.6, 3: 0.5, 2: 0.4, -4: 0.6, -3: 0.5, -2: 0.4}
        self.next = 0.8

    def tokens(self, size: int, drafted: int) -> float:
        """How many tokens a pass with such a draft gives, its own one included."""
        return 1 + self.first[size] * (1 - self.next**drafted) / (1 - self.next)

    def learn(self, size: int, drafted: int, right: int) -> None:
        """How many tokens of a draft behind a match of this size were right."""
        self.first[size] += LEARN * ((right > 0) - self.first[size])
        if right and drafted > 1:
            tried = min(drafted, right + 1) - 1
            self.next += LEARN * ((right - 1) / tried - self.next)
            self.next = min(max(self.next, 0.05), 0.95)

    def let_pass(self, size: int) -> None:
        """A match that was not worth a draft may be worth one later."""
        self.first[size] = min(0.5, self.first[size] + TRUST)


class Lookup:
    """Tokens so far, indexed by their n-grams; `earlier` is asked where they have no match themselves."""

    def __init__(self, tokens: Sequence[int], earlier: Lookup | None = None) -> None:
        self.tokens: list[int] = []
        self.earlier = earlier
        self.size = 0  # of the match that the last draft followed, below 0 where it was an earlier one
        self._after: dict[int, dict[tuple[int, ...], int]] = {size: {} for size in GRAMS}
        self._match = dict.fromkeys(GRAMS, 0)
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """Take a token in."""
        self.tokens.append(token)
        end = len(self.tokens)
        for size in GRAMS:
            if size <= end:
                gram = tuple(self.tokens[-size:])
                self._match[size] = self._after[size].get(gram, 0)
                self._after[size][gram] = end

    def draft(self, habits: Habits, costs: Costs, most: int) -> list[int]:
        """Tokens that may come next, as many as are worth trying; mostly none."""
        self.size, source, start = self._find()
        if not self.size:
            return []
        there = min(most, len(source) - start)
        best, gain = 0, LEAST
        for length in LENGTHS:
            length = min(length, there)
            if length > best and (found := habits.tokens(self.size, length) / costs.of(1 + length)) > gain:
                best, gain = length, found
        if not best:
            habits.let_pass(self.size)
            costs.let_pass()
        return source[start : start + best]

    def _find(self) -> tuple[int, list[int], int]:
        """The longest match: its size, the tokens that it is in, and where they go on; size 0 for none."""
        for size in GRAMS:
            if self._match[size]:
                return size, self.tokens, self._match[size]
            if self.earlier is not None and size <= len(self.tokens):
                start = self.earlier._after[size].get(tuple(self.tokens[-size:]), 0)
                if start and start < len(self.earlier.tokens):
                    return -size, self.earlier.tokens, start
        return 0, [], 0

    def remember(self, prompt: Sequence[int], answer: Sequence[int]) -> Lookup:
        """These earlier answers with one more; the oldest are forgotten when there are too many."""
        kept = self if len(self.tokens) < REMEMBERED else Lookup(self.tokens[-REMEMBERED // 2 :])
        for token in (*prompt[-GRAMS[0] :], *answer):
            kept.push(token)
        return kept


class Costs:
    """What a pass costs by its tokens, in passes of one token; learned as it runs, one for all requests."""

    def __init__(self) -> None:
        self._single, self._slope = 0.0, SLOPE
        self._seen: set[int] = set()

    def of(self, tokens: int) -> float:
        """Of a pass of so many tokens."""
        return 1 + (tokens - 1) * self._slope

    def learn(self, tokens: int, seconds: float) -> None:
        """Note what one pass took; the first of its width allocates, and one slow pass says nothing."""
        if tokens not in self._seen:
            self._seen.add(tokens)
        elif tokens == 1:
            self._single = min(seconds, 1.02 * self._single) if self._single else seconds
        elif self._single:
            slope = max(seconds / self._single - 1, 0.01) / (tokens - 1)
            self._slope += LEARN * (min(slope, 2 * self._slope) - self._slope)

    def let_pass(self) -> None:
        """Passes that are never made are never measured again: what is known of them fades."""
        self._slope += 0.01 * (SLOPE - self._slope)
