"""The running batch: requests of different lengths and adapters join it and leave it when they end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeft.contract.errors import EdgeftError
from edgeft.contract.events import event

from .growing import GrowingLanes
from .lanes import Lanes
from .lookup import Habits
from .prefixes import Prefixes
from .request import Generation, Request
from .shelf import Shelf
from .unsound import explain, finite

if TYPE_CHECKING:
    from .constrain import Constraint

MOST_ROWS = 16  # requests that run at once; the others wait
Event = tuple[Request, str | Generation | Exception]


class Batch:
    """Each `step` is one pass of all rows, or one chunk of a prompt.

    Rows of the lanes are the running requests in order; a request whose prompt still goes in stands behind them.
    """

    def __init__(self, make_lanes: Callable[[int, int], Lanes | GrowingLanes], prefixes: Prefixes | None = None,
                 most_rows: int = MOST_ROWS, shelf: Shelf | None = None) -> None:
        self._make_lanes, self.prefixes, self.most_rows, self._shelf = make_lanes, prefixes, most_rows, shelf
        self._arrived: SimpleQueue[Request] = SimpleQueue()  # filled by any thread
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.feeding: Request | None = None
        self._fed = 0  # tokens of its prompt that went in
        self._full = False  # no room for one more row until one has left
        self._lanes: Lanes | GrowingLanes | None = None
        self.drafting = Habits()

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting or self.running or self.feeding or not self._arrived.empty())

    def step(self) -> list[Event]:
        """One pass; returns pieces of text, and answers of those that have ended."""
        events = self._drop_ended()
        if self._admits():
            events += self._admit()
        if self.feeding is not None:
            events += self._feed()
        elif self.running:
            events += self._decode()
        if self.feeding is not None and self.running:
            events += self._decode()
        self._rest()
        return events

    def _rest(self) -> None:
        """Give the rows' memory back when nothing is left to do; one row stays for the next request."""
        if not self.busy and self._lanes is not None and (self._lanes.rows or self._lanes.most > 1):
            self._close()

    def _close(self) -> None:
        if self._lanes is not None:
            self._lanes.close()
            self._lanes = None

    def abandon(self) -> None:
        """Drop all requests: no row can be trusted after a pass that failed."""
        self._arrive()
        while self.waiting:
            self._call()
        self.running.clear()
        self.feeding = None
        self._close()

    def _call(self, request: Request | None = None) -> Request:
        """Take a request, by default the first, out of those that wait."""
        request = request or self.waiting[0]
        self.waiting.remove(request)
        if self._shelf is not None:
            self._shelf.release(request.used)
        return request

    def _admits(self) -> bool:
        joins = self._lanes is None or self._lanes.joins
        return bool(self.waiting) and joins and not (self._full or self.feeding or len(self.running) == self.most_rows)

    def _admit(self) -> list[Event]:
        request = self.waiting[0]
        try:
            if self._lanes is None:
                self._lanes = self._make_lanes(request.capacity, 1)
            if isinstance(self._lanes, GrowingLanes):
                return self._admit_all(self._lanes, self.most_rows)
            row = self._lanes.join(request.used, request.capacity)
        except EdgeftError as error:
            return self._refuse(request, error)
        self.feeding, self._fed = self._call(), 0
        request.start()
        event("request_begun", request=request.serial, adapters=request.adapters, prompt_tokens=len(request.prompt),
              max_tokens=request.max_tokens, running=len(self.running) + 1)
        if self.prefixes is not None:
            self._fed = request.reused = self.prefixes.restore(self._lanes, row, self._lanes.key(row), request.prompt)
        return []

    def _refuse(self, request: Request, error: EdgeftError) -> list[Event]:
        """No room for the first that waits: it waits on, or takes smaller rows, or cannot be had at all."""
        if self.running:
            self._full = True
        elif self._lanes is not None and (self._lanes.capacity > request.capacity or self._lanes.most > 1):
            self._close()
        else:
            self._close()
            return [(self._call(request), error)]
        return []

    def _admit_all(self, lanes: GrowingLanes, most: int) -> list[Event]:
        """A traced graph: those that fit together go in together, and nobody joins before they have ended."""
        first = self.waiting[0]
        together = [request for request in self.waiting if lanes.pads
                    or (request.soft, len(request.prompt)) == (first.soft, len(first.prompt))][:most]
        try:
            for request in together:
                lanes.join(request.used, request.capacity)
                request.start()
                event("request_begun", request=request.serial, adapters=request.adapters,
                      prompt_tokens=len(request.prompt), max_tokens=request.max_tokens, running=lanes.rows)
            logits = list(lanes.prefill([request.prompt for request in together]))
        except EdgeftError as error:
            self._close()
            if len(together) == 1:
                return [(self._call(first), error)]
            self._lanes = self._make_lanes(first.capacity, 1)
            return self._admit_all(self._lanes, 1)  # type: ignore[arg-type]
        self.running = [self._call(request) for request in together]
        return self._take(logits)

    def _feed(self) -> list[Event]:
        """One chunk of the prompt that is going in."""
        request, row, lanes = self.feeding, len(self.running), self._lanes
        assert isinstance(lanes, Lanes) and request is not None  # noqa: PT018
        part = request.prompt[self._fed : self._fed + lanes.chunk]
        try:
            logits = lanes.feed(row, part)
        except EdgeftError as error:
            return self._put_back(request, lanes, error)
        self._fed += len(part)
        if self._fed < len(request.prompt):
            return []
        self.feeding = None
        self.running.append(request)
        if self.prefixes is not None and request.reused < len(request.prompt) - 1 and finite(logits[-1]):
            self.prefixes.keep(lanes, row, lanes.key(row), request.prompt)
        return self._take([logits[-1]], [request])

    def _put_back(self, request: Request, lanes: Lanes, error: EdgeftError) -> list[Event]:
        """Its adapters have no room beside the running ones."""
        lanes.leave(len(self.running))
        self.feeding = None
        self.waiting.appendleft(request)
        if self._shelf is not None:
            self._shelf.use(request.used)
        return self._refuse(request, error)

    def _decode(self) -> list[Event]:
        lanes = self._lanes
        assert lanes is not None
        if len(self.running) == 1 and isinstance(lanes, Lanes) and self.feeding is None:
            try:
                return self._alone(lanes, self.running[0])
            except EdgeftError as error:
                return self._failed(self.running[0], error)
        for request in self.running:
            request.passes += 1
        try:
            logits = lanes.step([request.tokens[-1] for request in self.running], len(self.running))
        except EdgeftError as error:
            return self._in_turn(lanes, error)
        return self._take(list(logits))

    def _in_turn(self, lanes: Lanes | GrowingLanes, error: EdgeftError) -> list[Event]:
        """No room for all rows' adapters side by side: one row after the other."""
        events = list[Event]()
        for request in list(self.running):
            try:
                if not isinstance(lanes, Lanes):
                    raise error
                logits = lanes.feed(self.running.index(request), request.tokens[-1:])
            except EdgeftError as reason:
                events += self._failed(request, reason)
            else:
                events += self._take([logits[-1]], [request])
        return events

    def _alone(self, lanes: Lanes, request: Request) -> list[Event]:
        """One request: tokens that are forced or likely go in with the last one."""
        before = int(lanes.lengths[0])
        room = min(request.left - 1, lanes.capacity - before - 1)
        pieces = self._forced(request, request.constraint, room) if request.constraint is not None else []
        if request.finish:
            return self._taken(request, pieces)
        request.passes, start = request.passes + 1, time.perf_counter()
        if pieces:
            last = lanes.feed(0, request.tokens[-1 - len(pieces) :])[-1]
            return self._taken(request, [*pieces, self._next_of(request, last)])
        drafting = self.drafting.of(request.adapters) if request.drafts is not None else None
        draft = drafting.draft(request.drafts, room) if drafting and request.drafts and room > 0 else []
        if not draft:
            last = lanes.step(request.tokens[-1:])[0]
            if drafting:
                drafting.costs.learn(1, time.perf_counter() - start)
            return self._taken(request, [self._next_of(request, last)])
        logits = lanes.feed(0, [request.tokens[-1], *draft], keep=0)
        right = next((place for place, token in enumerate(draft) if logits[place].argmax() != token), len(draft))
        self._sound(request, logits[: right + 1])
        lanes.rewind(0, before + 1 + right)
        if drafting:
            drafting.learn(len(draft), right, time.perf_counter() - start)
        return self._taken(request, self._check(request, draft[:right], logits[right]))

    def _check(self, request: Request, right: list[int], logits: np.ndarray[Any, Any]) -> list[str]:
        """Take the drafted tokens that the model would have chosen, and the one that it chooses behind them."""
        pieces = []
        for token in right:
            pieces.append(request.accept(token))
            if request.finish:
                return pieces
        return [*pieces, request.take(logits)]

    def _next_of(self, request: Request, logits: np.ndarray[Any, Any]) -> str:
        """A running request chooses its next token from sound logits [vocabulary]."""
        self._sound(request, logits)
        return request.take(logits)

    def _sound(self, request: Request, logits: np.ndarray[Any, Any]) -> None:
        """EdgeftError that names the layer, unless a running request's logits are finite."""
        if not finite(logits):
            assert self._lanes is not None
            raise EdgeftError(explain(self._lanes, self.running.index(request)))

    def _forced(self, request: Request, constraint: Constraint, room: int) -> list[str]:
        """Accept what the grammar leaves no choice about."""
        pieces: list[str] = []
        for token in constraint.forced()[: max(room, 0)]:
            pieces.append(request.accept(token))
            if request.finish:
                break
        return pieces

    def _take(self, logits: Sequence[np.ndarray[Any, Any]], requests: Sequence[Request] = ()) -> list[Event]:
        """Every running request, or each of these, chooses its next token."""
        events: list[Event] = []
        for request, row in zip(list(requests or self.running), logits, strict=True):
            try:
                events += self._taken(request, [self._next_of(request, row)])
            except EdgeftError as error:
                events += self._failed(request, error)
        return events

    def _taken(self, request: Request, pieces: Sequence[str]) -> list[Event]:
        events: list[Event] = [(request, piece) for piece in pieces if piece]
        if request.finish:
            self._leave(request)
            events.append((request, request.result()))
        return events

    def _failed(self, request: Request, error: EdgeftError) -> list[Event]:
        """One request cannot go on; the others do."""
        self._leave(request, keep=False)
        return [(request, error)]

    def _leave(self, request: Request, *, keep: bool = True) -> None:
        row, last, lanes = self.running.index(request), len(self.running) - 1, self._lanes
        assert lanes is not None
        if isinstance(lanes, Lanes):
            if request.drafts is not None:
                self.drafting.of(request.adapters).remember(request.prompt, request.tokens)
            held = int(lanes.lengths[row]) - request.soft - len(request.prompt)
            if keep and self.prefixes is not None and 0 < held <= len(request.tokens):
                self.prefixes.keep(lanes, row, lanes.key(row), [*request.prompt, *request.tokens[:held]])
            if self.feeding is not None and row != last:
                lanes.swap(row, last)
                self.running[row], self.running[last] = self.running[last], request
                row = last
        lanes.leave(row)
        if row != last:
            self.running[row] = self.running[last]
        self.running.pop()
        self._full = False
        if not self.running and not lanes.joins:
            self._close()  # the next ones start anew

    def _arrive(self) -> None:
        while not self._arrived.empty():
            self.waiting.append(self._arrived.get())

    def _drop_ended(self) -> list[Event]:
        """Take out what was cancelled, and what has had its time."""
        self._arrive()
        now, events = time.perf_counter(), list[Event]()
        for request in (*self.waiting, *self.running, *([self.feeding] if self.feeding else [])):
            request.expire(now)
        events += [(self._call(request), request.result()) for request in list(self.waiting) if request.finish]
        for request in [request for request in self.running if request.finish]:
            events += self._taken(request, [request.rest()])
        if self.feeding is not None and self.feeding.finish and self._lanes is not None:
            self._lanes.leave(len(self.running))
            events.append((self.feeding, self.feeding.result()))
            self.feeding, self._full = None, False
        return events
