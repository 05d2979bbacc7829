"""The engine for asyncio: one thread runs passes as long as requests are there; any number of tasks wait for theirs."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from edgeft.contract.errors import EdgeftError

from .request import Generation, Request

if TYPE_CHECKING:
    from .model import Model


class Worker:
    """Runs a model's engine in a thread of its own, from the first request until none is left."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._arrived: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._inboxes: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Queue[Any]]] = {}
        self._lock = threading.Lock()
        self._running = False

    def submit(self, request: Request, inbox: asyncio.Queue[Any]) -> None:
        """Queue a request; its pieces, its answer or an error come into the inbox."""
        with self._lock:
            self._inboxes[id(request)] = (asyncio.get_running_loop(), inbox)
            self._arrived.put(request)
            if not self._running:
                self._running = True
                threading.Thread(target=self._work, name="edgeft-engine", daemon=True).start()

    def _work(self) -> None:
        engine = self.model.engine
        with self.model.lock:
            while True:
                while not self._arrived.empty():
                    engine.submit(self._arrived.get())
                try:
                    for request, piece in engine.step():
                        self._tell(request, piece)
                except Exception as error:  # no request may wait for an answer that never comes
                    engine.clear()
                    for place in list(self._inboxes):
                        self._put(place, error)
                with self._lock:
                    if not engine.busy and self._arrived.empty():
                        self._running = False
                        return

    def _tell(self, request: Request, piece: str | Generation | EdgeftError) -> None:
        self._put(id(request), piece)
        if isinstance(piece, (Generation, EdgeftError)):
            self._inboxes.pop(id(request), None)

    def _put(self, place: int, piece: object) -> None:
        loop, inbox = self._inboxes.get(place, (None, None))
        if loop is not None and inbox is not None and not loop.is_closed():
            loop.call_soon_threadsafe(inbox.put_nowait, piece)


async def events(model: Model, prompt: Any, adapters: Any, options: dict[str, Any]) -> AsyncIterator[str]:
    """Pieces of text, then the whole Generation; a caller that goes away ends its request."""
    (request,) = await asyncio.to_thread(model.requests, [prompt], [adapters], **options)
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    model.worker.submit(request, inbox)
    try:
        while True:
            piece = await inbox.get()
            if isinstance(piece, Exception):
                raise piece
            yield piece
            if isinstance(piece, Generation):
                return
    finally:
        request.cancel()


async def astream(model: Model, prompt: Any, adapters: Any, options: dict[str, Any]) -> AsyncIterator[str]:
    """Pieces of text as they become known."""
    async for piece in events(model, prompt, adapters, options):
        if not isinstance(piece, Generation):
            yield piece


async def agenerate(model: Model, prompt: Any, adapters: Any, options: dict[str, Any]) -> Generation:
    """The whole answer."""
    async for piece in events(model, prompt, adapters, options):
        if isinstance(piece, Generation):
            answer = piece
    return answer
