"""Continuous batching: requests of different lengths and adapters join a running batch and leave it when they end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from edgeft.contract.errors import EdgeftError

from .growing import GrowingLanes
from .lanes import Lanes
from .lookup import Costs
from .prefixes import Prefixes
from .request import Generation, Request

MOST_ROWS = 16  # requests that run at once; the others wait
Event = tuple[Request, str | Generation | EdgeftError]


class Engine:
    """Runs requests: each `step` is one pass of the batch, or one chunk of a prompt.

    Rows of the lanes are the running requests in order; a request whose prompt still goes in stands behind them.
    """

    def __init__(self, make_lanes: Callable[[int, int], Lanes | GrowingLanes], prefixes: Prefixes | None = None,
                 most_rows: int = MOST_ROWS) -> None:
        self._make_lanes, self.prefixes, self.most_rows = make_lanes, prefixes, most_rows
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.feeding: Request | None = None
        self._fed = 0  # tokens of its prompt that went in
        self._lanes: Lanes | GrowingLanes | None = None
        self.costs = Costs()

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting or self.running or self.feeding)

    def submit(self, request: Request) -> None:
        """Put a request into the queue."""
        self.waiting.append(request)

    def run(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Submit requests and yield what comes until all have ended; those left over when the caller goes end too."""
        self.waiting.extend(requests)
        try:
            while self.busy:
                yield from self.step()
        finally:
            self.clear()

    def clear(self) -> None:
        """Drop whatever still runs."""
        self.waiting.clear()
        self.running.clear()
        self.feeding = None
        if self._lanes is not None and self._lanes.rows:
            self._lanes.close()
            self._lanes = None

    def step(self) -> list[Event]:
        """One pass; returns pieces of text, and answers of those that have ended."""
        events: list[Event] = self._drop_cancelled()
        if self._admits():
            events += self._admit()
        if self.feeding is not None:
            events += self._feed()
        elif self.running:
            events += self._decode()
        if self.feeding is not None and len(self.running):
            events += self._decode()
        if not self.busy and self._lanes is not None and (self._lanes.rows or not self._lanes.joins
                                                          or getattr(self._lanes, "most", 1) > 1):
            self._lanes.close()
            self._lanes = None
        return events

    def _admits(self) -> bool:
        if not self.waiting or self.feeding is not None:
            return False
        joins = self._lanes is None or self._lanes.joins or not self.running
        return joins and len(self.running) < self.most_rows

    def _admit(self) -> list[Event]:
        request, fresh = self.waiting[0], self._lanes is None
        try:
            if self._lanes is None:
                self._lanes = self._make_lanes(request.capacity, 1)
            if isinstance(self._lanes, GrowingLanes):
                return self._admit_all(self._lanes)
            row = self._join(self._lanes, request)
        except EdgeftError as error:
            if self.running:
                return []  # when others have ended there may be room
            if self._lanes is not None:
                self._lanes.close()
                self._lanes = None
            if not fresh:
                return []  # once more, with a cache for this one alone
            self.waiting.popleft()
            return [(request, error)]
        self.feeding, self._fed = self.waiting.popleft(), 0
        request.start()
        if self.prefixes is not None:
            self._fed = request.reused = self.prefixes.restore(self._lanes, row, self._lanes.key(row), request.prompt)
        return []

    def _join(self, lanes: Lanes, request: Request) -> int:
        """A row for a request, its adapters bound: what finds no room does so now, not amid others' answers."""
        row = lanes.join(request.used, request.capacity)
        try:
            lanes.bind(row)
        except EdgeftError:
            lanes.leave(row)
            raise
        return row

    def _admit_all(self, lanes: GrowingLanes) -> list[Event]:
        """A traced graph: all that wait go in together, and nobody joins before they have ended."""
        self.running = [self.waiting.popleft() for _ in range(min(len(self.waiting), self.most_rows))]
        for request in self.running:
            request.start()
            lanes.join(request.used, request.capacity)
        logits = lanes.prefill([request.prompt for request in self.running])
        return self._take(list(logits))

    def _feed(self) -> list[Event]:
        """One chunk of the prompt that is going in."""
        assert isinstance(self._lanes, Lanes)
        assert self.feeding is not None
        request, row = self.feeding, len(self.running)
        part = request.prompt[self._fed : self._fed + self._lanes.chunk]
        logits = self._lanes.feed(row, part)
        self._fed += len(part)
        if self._fed < len(request.prompt):
            return []
        self.feeding = None
        self.running.append(request)
        if self.prefixes is not None and request.reused < len(request.prompt) - 1:
            self.prefixes.keep(self._lanes, row, self._lanes.key(row), request.prompt)
        return self._taken(request, [request.take(logits[-1])])

    def _decode(self) -> list[Event]:
        if len(self.running) == 1 and self._lanes is not None and self._lanes.joins and self.feeding is None:
            return self._alone(self._lanes, self.running[0])  # type: ignore[arg-type]
        assert self._lanes is not None
        for request in self.running:
            request.passes += 1
        return self._take(list(self._lanes.step([request.tokens[-1] for request in self.running], len(self.running))))

    def _alone(self, lanes: Lanes, request: Request) -> list[Event]:
        """One request: tokens that are forced or likely go in with the last one."""
        before, start = int(lanes.lengths[0]), time.perf_counter()
        request.passes += 1
        room = min(request.left - 1, lanes.capacity - before - 1)
        if request.constraint is not None:
            pieces = self._forced(request, room)
            if request.finish:
                return self._taken(request, pieces)
            logits = lanes.feed(0, request.tokens[-1 - len(pieces) :])
            return self._taken(request, [*pieces, request.take(logits[-1])])
        draft = request.drafts.draft(self.costs, room) if request.drafts is not None and room > 0 else []
        if not draft:
            logits = lanes.step([request.tokens[-1]])
            self.costs.learn(1, time.perf_counter() - start)
            return self._taken(request, [request.take(logits[0])])
        logits = lanes.feed(0, [request.tokens[-1], *draft], keep=0)
        return self._taken(request, self._check(lanes, request, draft, logits, before, start))

    def _check(self, lanes: Lanes, request: Request, draft: list[int], logits: np.ndarray[Any, Any], before: int,
               start: float) -> list[str]:
        """Take the drafted tokens that the model would have chosen, and the one that it chooses behind them."""
        best = logits.argmax(-1).tolist()
        right = next((place for place, token in enumerate(draft) if best[place] != token), len(draft))
        lanes.rewind(0, before + 1 + right)
        assert request.drafts is not None
        request.drafts.learn(len(draft), right)
        self.costs.learn(1 + len(draft), time.perf_counter() - start)
        pieces = []
        for token in draft[:right]:
            pieces.append(request.accept(token))
            if request.finish:
                return pieces
        return [*pieces, request.take(logits[right])]

    def _forced(self, request: Request, room: int) -> list[str]:
        """Accept what the grammar leaves no choice about."""
        assert request.constraint is not None
        pieces: list[str] = []
        for token in request.constraint.forced()[: max(room, 0)]:
            pieces.append(request.accept(token))
            if request.finish:
                break
        return pieces

    def _take(self, logits: Sequence[np.ndarray[Any, Any]]) -> list[Event]:
        """Every running request chooses its next token."""
        events: list[Event] = []
        for request, row in list(zip(self.running, logits, strict=True)):
            events += self._taken(request, [request.take(row)])
        return events

    def _taken(self, request: Request, pieces: Sequence[str]) -> list[Event]:
        events: list[Event] = [(request, piece) for piece in pieces if piece]
        if request.finish:
            self._leave(request)
            events.append((request, request.result()))
        return events

    def _leave(self, request: Request) -> None:
        row, last = self.running.index(request), len(self.running) - 1
        lanes = self._lanes
        assert lanes is not None
        if isinstance(lanes, Lanes):
            held = int(lanes.lengths[row]) - request.soft - len(request.prompt)
            if self.prefixes is not None and 0 < held <= len(request.tokens):
                self.prefixes.keep(lanes, row, lanes.key(row), [*request.prompt, *request.tokens[:held]])
            if self.feeding is not None and row != last:
                lanes.swap(row, last)
                self.running[row], self.running[last] = self.running[last], request
                row = last
        lanes.leave(row)
        if row != last:
            self.running[row] = self.running[last]
        self.running.pop()

    def _drop_cancelled(self) -> list[Event]:
        events: list[Event] = []
        for request in [request for request in self.waiting if request.finish]:
            self.waiting.remove(request)
            events.append((request, request.result()))
        for request in [request for request in self.running if request.finish]:
            events += self._taken(request, [])
        if self.feeding is not None and self.feeding.finish and self._lanes is not None:
            self._lanes.leave(len(self.running))
            events.append((self.feeding, self.feeding.result()))
            self.feeding = None
        return events
