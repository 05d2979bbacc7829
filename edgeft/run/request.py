"""One request while it runs, and the answer that it becomes."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from edgeft.contract.errors import UsageError
from edgeft.contract.memory import peak_mib

from .detokenize import Detokenizer
from .lookup import Lookup
from .sampling import Sampler
from .shelf import Used

if TYPE_CHECKING:
    from .constrain import Constraint


_serials = itertools.count(1)


class Generation(str):
    """An answer: the text itself, with what it took beside it."""

    tokens: list[int]
    prompt_tokens: list[int]
    adapters: dict[str, float]
    finish: str  # eos | stop | length | context | cancelled | timeout
    seed: int | None
    prefill_seconds: float
    decode_seconds: float
    reused_tokens: int  # of the prompt, whose keys and values were kept from an earlier request
    passes: int  # through the model after the prompt; fewer than tokens where drafts were right

    @property
    def text(self) -> str:
        """The answer as a plain string."""
        return str(self)

    def to_json(self) -> dict[str, Any]:
        """What `edgeft run --json` prints; speeds in tokens per second, memory in MiB."""
        steps = len(self.tokens) - 1  # the first token comes out of the prefill
        return {"text": str(self), "tokens": self.tokens, "prompt_tokens": self.prompt_tokens,
                "adapters": self.adapters, "finish": self.finish, "seed": self.seed,
                "prefill_tokens_per_s": round(len(self.prompt_tokens) / max(self.prefill_seconds, 1e-9), 2),
                "decode_tokens_per_s": round(steps / self.decode_seconds, 2) if steps > 0 else None,
                "reused_tokens": self.reused_tokens, "passes": self.passes, "peak_rss_mib": round(peak_mib(), 1)}


@dataclass(eq=False)  # two that ask the same are still two
class Request:
    """What is asked, and how far the answer is."""

    prompt: list[int]
    adapters: dict[str, float]
    sampler: Sampler
    tokenizer: Tokenizer
    eos: frozenset[int]
    context: int
    stops: Sequence[str] = ()
    max_tokens: int = 128
    constraint: Constraint | None = None
    lookup: bool = True  # whether drafts may be made from the tokens so far
    soft: int = 0  # tokens of the soft prompt
    deadline: float = math.inf  # of time.perf_counter()
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: str = ""
    reused: int = 0
    passes: int = 0
    serial: int = field(default_factory=lambda: next(_serials))  # its name in the log

    def __post_init__(self) -> None:
        self._decoder = Detokenizer(self.tokenizer)
        self._shown = 0
        greedy = self.sampler.temperature == 0 and self.sampler.repetition_penalty == 1
        self.drafts = Lookup(self.prompt) if self.lookup and greedy and self.constraint is None else None
        self._started = self._first = time.perf_counter()

    @property
    def used(self) -> Used:
        """Adapters with their scales."""
        return self.adapters

    @property
    def capacity(self) -> int:
        """Tokens of cache that it may fill."""
        return min(self.context, self.soft + len(self.prompt) + self.max_tokens)

    @property
    def left(self) -> int:
        """How many more tokens may come."""
        return min(self.max_tokens, self.context - self.soft - len(self.prompt)) - len(self.tokens)

    def start(self) -> None:
        """Its turn has come."""
        self._started = time.perf_counter()

    def take(self, logits: np.ndarray[Any, Any]) -> str:
        """Choose the next token from logits [vocabulary]; returns the text that is now certain."""
        if not self.tokens:
            self._first = time.perf_counter()
        if self.constraint is not None:
            logits = np.array(logits)  # the buffer is the batch's
            self.constraint.mask(logits)
        token = self.sampler(logits, self.prompt + self.tokens if self.sampler.repetition_penalty != 1 else [])
        return self.accept(token)

    def accept(self, token: int) -> str:
        """The next token is known; returns the text that is now certain."""
        self.tokens.append(token)
        if self.drafts is not None:
            self.drafts.push(token)
        if self.constraint is not None:
            self.constraint.take(token)
        if token in self.eos:
            self.finish = "eos"
        else:
            self.text += self._decoder.step(token)
            self._stop_at_text()
            if not self.finish and self.constraint is not None and self.constraint.done:
                self.finish = "eos"
            elif not self.finish and self.left <= 0:
                self.finish = "length" if len(self.tokens) >= self.max_tokens else "context"
        return self._certain()

    def cancel(self) -> None:
        """End it where it is."""
        self.finish = self.finish or "cancelled"

    def expire(self, now: float) -> None:
        """End it where it is if its time is over."""
        if now >= self.deadline:
            self.finish = self.finish or "timeout"

    def rest(self) -> str:
        """Text that was held back, of a request that was ended where it was."""
        return self._certain()

    def _certain(self) -> str:
        if self.finish not in ("", "stop"):
            self.text += self._decoder.flush()
        certain = len(self.text) if self.finish else len(self.text) - _overlap(self.text, self.stops)
        piece, self._shown = self.text[self._shown : certain], max(self._shown, certain)
        return piece

    def _stop_at_text(self) -> None:
        found = [position for position in (self.text.find(stop) for stop in self.stops if stop) if position >= 0]
        if found:
            self.text, self.finish = self.text[: min(found)], "stop"

    def result(self) -> Generation:
        """The answer, now that it has ended."""
        made = Generation(self.text)
        made.tokens, made.prompt_tokens, made.adapters = self.tokens, self.prompt, self.adapters
        made.finish, made.seed = self.finish, self.sampler.seed if self.sampler.temperature else None
        made.prefill_seconds = self._first - self._started
        made.decode_seconds = time.perf_counter() - self._first
        made.reused_tokens, made.passes = self.reused, self.passes
        return made


def deadline_of(timeout: float | None, began: float) -> float:
    """When a request must have ended, in time.perf_counter(); UsageError for a time that cannot be."""
    if timeout is None:
        return math.inf
    if not (isinstance(timeout, (int, float)) and 0 < timeout < math.inf):
        raise UsageError(f"timeout must be a number of seconds above 0, found {timeout!r}.")
    return began + timeout


def _overlap(text: str, stops: Sequence[str]) -> int:
    """How much of the text's end could be the start of a stop text: it is held back until known."""
    return max((size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0)
