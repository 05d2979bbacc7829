"""Prompt lookup: what followed the last tokens when they stood there before is likely to follow them again.

Before: in this prompt and answer, or else in the answers that the same adapters gave lately, whose form is alike.
Source: github.com/apoorvumang/prompt-lookup-decoding. Drafts are checked by the model itself in one pass, so the
greedy answer stays what it is; how many are worth a pass is learned from what passes cost and drafts were right.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

GRAMS = (4, 3, 2)  # tokens that must agree; the longest match is followed
LENGTHS = (2, 4, 7, 11, 15)  # tokens of a draft
LEAST = 1.1  # expected gain below which no draft is made
LEARN = 0.1  # weight of the newest draft in what is known of drafts
TRUST = 0.002  # how much a kind of match is trusted again, each time it is let pass
SLOPE = 0.15  # what one more token in a pass costs, in passes of one token, until it is measured
REMEMBERED = 4096  # tokens of earlier answers
KNOWN = 16  # sets of adapters of which something is known: their answers take up to 2 MiB each


class Lookup:
    """Tokens so far, indexed by their n-grams."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens: list[int] = []
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

    def own(self, size: int) -> int:
        """Where its own last tokens, so many of them, stood before; the place behind them, 0 for nowhere."""
        return self._match[size]

    def of(self, last: Sequence[int]) -> int:
        """Where these tokens stand at last; the place behind them, 0 for nowhere."""
        place = self._after[len(last)].get(tuple(last), 0)
        return place if place < len(self.tokens) else 0


class Drafting:
    """What is known of drafts with some adapters: earlier answers, how often drafts are right, what passes cost."""

    def __init__(self) -> None:
        # how often the first token is right, by how many tokens agree, below 0 with an earlier answer; and each next
        self.first = {4: 0.6, 3: 0.5, 2: 0.4, -4: 0.6, -3: 0.5, -2: 0.4}
        self.next = 0.8
        self.costs, self.earlier = Costs(), Lookup()
        self._size = 0  # of the match that the last draft followed

    def draft(self, so_far: Lookup, most: int) -> list[int]:
        """Tokens that may come next, as many as are worth trying; mostly none."""
        self._size, source, start = self._find(so_far)
        if not self._size:
            return []
        there = min(most, len(source) - start)
        best, gain = 0, LEAST
        for length in LENGTHS:
            length = min(length, there)
            if length > best and (found := self._tokens(length) / self.costs.of(1 + length)) > gain:
                best, gain = length, found
        if not best:  # what is never tried is never learned again: both fade
            self.first[self._size] = max(self.first[self._size], min(0.5, self.first[self._size] + TRUST))
            self.costs.let_pass()
        return source[start : start + best]

    def _find(self, so_far: Lookup) -> tuple[int, list[int], int]:
        """The longest match: its size, the tokens that it is in, and where they go on; size 0 for none."""
        for size in GRAMS:
            if so_far.own(size):
                return size, so_far.tokens, so_far.own(size)
            if size <= len(so_far.tokens) and (start := self.earlier.of(so_far.tokens[-size:])):
                return -size, self.earlier.tokens, start
        return 0, [], 0

    def _tokens(self, drafted: int) -> float:
        """How many tokens a pass with such a draft gives, its own one included."""
        return 1 + self.first[self._size] * (1 - self.next**drafted) / (1 - self.next)

    def learn(self, drafted: int, right: int, seconds: float) -> None:
        """How many tokens of the last draft were right, and what its pass took."""
        self.first[self._size] += LEARN * ((right > 0) - self.first[self._size])
        if right and drafted > 1:
            tried = min(drafted, right + 1) - 1
            self.next += LEARN * ((right - 1) / tried - self.next)
            self.next = min(max(self.next, 0.05), 0.95)
        self.costs.learn(1 + drafted, seconds)

    def remember(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Keep an answer, with the end of its prompt, for those that come later; the oldest are forgotten."""
        if len(self.earlier.tokens) > REMEMBERED:
            self.earlier = Lookup(self.earlier.tokens[-REMEMBERED // 2 :])
        for token in (*prompt[-GRAMS[0] :], *answer):
            self.earlier.push(token)


class Habits:
    """Drafting by the adapters of a request; those that were used least recently are forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, ...], Drafting] = OrderedDict()

    def of(self, adapters: Iterable[str]) -> Drafting:
        """What is known of drafts with these."""
        key = tuple(adapters)
        if key not in self._known:
            self._known[key] = Drafting()
        self._known.move_to_end(key)
        while len(self._known) > KNOWN:
            self._known.popitem(last=False)
        return self._known[key]


class Costs:
    """What a pass costs by its tokens, in passes of one token; learned as it runs."""

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
        """A width that is never tried is never measured again: what is known of it fades."""
        self._slope += 0.01 * (SLOPE - self._slope)
