"""The engine for asyncio: one thread runs passes as long as requests are there; any number of tasks wait for theirs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

from .engine import Engine
from .request import Generation, Request

if TYPE_CHECKING:
    from .model import Model


class Worker:
    """Runs an engine in a thread of its own, from the first request until none is left."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = threading.Lock()
        self._running = False

    def submit(self, request: Request, inbox: asyncio.Queue[Any]) -> None:
        """Queue a request; its pieces, its answer or an error come into the inbox."""
        loop = asyncio.get_running_loop()

        def tell(piece: object) -> None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
                loop.call_soon_threadsafe(inbox.put_nowait, piece)

        with self._lock:
            self.engine.submit(request, tell)
            if not self._running:
                self._running = True
                threading.Thread(target=self._work, name="edgeft-engine", daemon=True).start()

    def _work(self) -> None:
        while True:
            self.engine.advance()
            with self._lock:
                if not self.engine.busy:
                    self._running = False
                    return


async def events(model: Model, prompt: Any, adapters: Any, options: dict[str, Any]) -> AsyncGenerator[str, None]:
    """Pieces of text, then the whole Generation; a caller that goes away ends its request."""
    (request,) = await asyncio.to_thread(model.requests, [prompt], [adapters], **options)
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    model.worker.submit(request, inbox)
    try:
        while True:
            piece = await inbox.get()
            if isinstance(piece, Exception):
                try:
                    raise piece
                finally:
                    del piece  # as in Model._run
            yield piece
            if isinstance(piece, Generation):
                return
    finally:
        request.cancel()


async def astream(model: Model, prompt: Any, adapters: Any, options: dict[str, Any]) -> AsyncIterator[str]:
    """Pieces of text as they become known."""
    async with contextlib.aclosing(events(model, prompt, adapters, options)) as pieces:
        async for piece in pieces:
            if not isinstance(piece, Generation):
                yield piece


async def agenerate(model: Model, prompt: Any, adapters: Any, options: dict[str, Any]) -> Generation:
    """The whole answer."""
    async with contextlib.aclosing(events(model, prompt, adapters, options)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Generation):
                answer = piece
    return answer
