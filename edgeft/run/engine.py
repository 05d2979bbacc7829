"""The engine: takes requests from any thread or task, runs them in one batch, and tells each what came of it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence

from edgeft.contract.errors import EdgeftError

from .batch import MOST_ROWS, Batch, Event
from .growing import GrowingLanes
from .lanes import Lanes
from .prefixes import Prefixes
from .request import Generation, Request
from .shelf import Shelf

Tell = Callable[[str | Generation | Exception], object]


class Engine(Batch):
    """A batch whose steps are done by whoever waits for an answer, one at a time, for all."""

    def __init__(self, make_lanes: Callable[[int, int], Lanes | GrowingLanes], prefixes: Prefixes | None = None,
                 most_rows: int = MOST_ROWS, shelf: Shelf | None = None) -> None:
        super().__init__(make_lanes, prefixes, most_rows, shelf)
        self._tell: dict[Request, Tell] = {}
        self._turn, self._next = threading.Lock(), threading.Lock()

    def submit(self, request: Request, tell: Tell) -> None:
        """Put a request into the queue; `tell` gets its pieces of text, and at last its answer or an error."""
        if self._shelf is not None:
            self._shelf.use(request.used)  # until a row uses them
        self._tell[request] = tell
        self._arrived.put(request)

    def run(self, requests: Sequence[Request]) -> Generator[Event, None, None]:
        """Submit requests and yield what comes until all have ended; those left over when the caller goes end too.

        Several of these may be open at once, in one thread or in several: whoever waits does a pass for all.
        """
        events: deque[Event] = deque()
        for request in requests:
            self.submit(request, lambda piece, request=request: events.append((request, piece)))  # type: ignore[misc]
        left = len(requests)
        try:
            while left:
                while not events:
                    self.advance()
                left -= isinstance(events[0][1], (Generation, Exception))
                yield events.popleft()
        finally:
            if left:
                self._cancel(requests)

    def _cancel(self, requests: Sequence[Request]) -> None:
        """End requests now, or where a pass is being done by whoever does that."""
        for request in requests:
            request.cancel()
        if self._turn.acquire(blocking=False):
            try:
                self._deliver(self._drop_cancelled())
                self._rest()
            finally:
                self._turn.release()

    def advance(self) -> None:
        """One step, of which everyone is told; a pass that fails ends all requests."""
        with self._next:  # whoever waits comes before whoever just had a turn
            self._turn.acquire()
        try:
            self._deliver(self.step())
        except BaseException as error:
            told = error if isinstance(error, Exception) else EdgeftError("The batch was interrupted.")
            self.abandon()
            self._deliver([(request, told) for request in list(self._tell)])
            if told is not error:
                raise
        finally:
            self._turn.release()

    def _deliver(self, events: Sequence[Event]) -> None:
        for request, piece in events:
            ended = isinstance(piece, (Generation, Exception))
            (self._tell.pop if ended else self._tell.__getitem__)(request)(piece)
