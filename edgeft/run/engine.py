"""The engine: takes requests from any thread or task, runs them in one batch, and tells each what came of it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from edgeft.contract.errors import EdgeftError
from edgeft.contract.events import event

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
        with whole():
            if self._shelf is not None:
                self._shelf.use(request.used)  # until a row uses them
            self._tell[request] = tell
            self._arrived.put(request)

    def run(self, requests: Sequence[Request]) -> Generator[Event, None, None]:
        """Submit requests and yield what comes until all have ended; those left over when the caller goes end too.

        Several of these may be open at once, in one thread or in several: whoever waits does a pass for all.
        """
        events: deque[Event] = deque()
        left = len(requests)
        try:
            for request in requests:
                self.submit(request, lambda piece, request=request: events.append((request, piece)))  # type: ignore[misc]
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
        with whole():
            for request in requests:
                request.cancel()
            if self._turn.acquire(blocking=False):
                try:
                    self._deliver(self._drop_ended())
                    self._rest()
                finally:
                    self._turn.release()

    def advance(self) -> None:
        """One step, of which everyone is told; a pass that fails ends all requests."""
        with whole():
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
            if not isinstance(piece, (Generation, Exception)):
                self._tell[request](piece)
                continue
            _record(request, piece)
            self._tell.pop(request)(piece)


def _record(request: Request, end: Generation | Exception) -> None:
    """A line in the log for a request that has ended."""
    about: dict[str, Any] = {"request": request.serial, "adapters": request.adapters, "tokens": len(request.tokens)}
    if isinstance(end, Exception):
        event("request_failed", **about, reason=str(end))
    else:
        event("request_ended", **about, finish=end.finish, reused_tokens=end.reused_tokens,
              prefill_seconds=round(end.prefill_seconds, 6), decode_seconds=round(end.decode_seconds, 6))


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Ctrl-C waits until what is done here is done: others' requests are in the same pass."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    pressed: list[Any] = []
    signal.signal(signal.SIGINT, lambda *about: pressed.append(about))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            before(*pressed[0])
