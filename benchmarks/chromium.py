"""Debian's Chromium, driven by Playwright over a bundle's page, which a plain static server gives."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage"]
NO_GPU = ["--disable-gpu", "--disable-features=WebGPU"]
# WebGPU computed by the processor (SwiftShader): right, and slow
SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan",
                "--use-vulkan=swiftshader"]
PATIENCE = 120_000  # milliseconds
# A worker of the page's own modules, without its controls: ask(action, data) as client.js has it
CLIENT = """async ([address, threads]) => {
  const { Client } = await import(new URL("web/client.js", address).href);
  window.client = new Client();
  return await window.client.ask("load", { address, threads });
}"""
ASK = "async ([action, data]) => await window.client.ask(action, data)"


def missing() -> str:
    """What is to be installed before a page can be opened here; empty if nothing is."""
    if program() is None:
        return "no Chromium on this machine: apt-get install chromium"
    if importlib.util.find_spec("playwright") is None:
        return "no Playwright here: pip install playwright (its own browsers are not needed)"
    return ""


def program() -> str | None:
    """Chromium's path."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes in the middle of a file is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, as `python -m http.server` gives it."""
    server = _Server(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class Visit:
    """A browser with one profile; `foreign` are requests that would have left the machine, `said` its console."""

    def __init__(self, context: Any, address: str) -> None:
        self.context, self.address = context, address
        self.foreign: list[str] = []
        self.said: list[str] = []
        context.on("request", self._request)
        context.set_default_timeout(PATIENCE)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "blob:", "data:")):
            self.foreign.append(request.url)

    def open(self, *, ready: bool = True) -> Any:
        """The page, once its controls or an error are there."""
        page = self.context.new_page()
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.goto(self.address)
        if ready:
            page.wait_for_selector("#form:not([hidden]), #error:not([hidden])")
        return page

    def client(self, threads: int = 1) -> Any:
        """A page whose `window.client` is a loaded worker; see `ask`."""
        page = self.open()
        page.evaluate(CLIENT, [self.address, threads])
        return page


class _Driver:
    """Playwright's one driver: a thread cannot start a second, and some visits lie within another."""

    manager: Any = None
    playwright: Any = None
    visits = 0


@contextmanager
def driver() -> Iterator[Any]:
    """Playwright, started by the first visit and ended with the last."""
    from playwright.sync_api import sync_playwright

    if _Driver.visits == 0:
        _Driver.manager = sync_playwright()
        _Driver.playwright = _Driver.manager.__enter__()
    _Driver.visits += 1
    try:
        yield _Driver.playwright
    finally:
        _Driver.visits -= 1
        if _Driver.visits == 0:
            _Driver.manager.__exit__(None, None, None)


@contextmanager
def visit(folder: Path, profile: Path, gpu: Sequence[str] = NO_GPU, **options: Any) -> Iterator[Visit]:
    """A browser at a folder's page; a profile that is used again has its files in the cache."""
    # nothing but this machine has an address: what would leave it fails, and is counted
    rules = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"]
    with served(folder) as address, driver() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=program(), headless=True, args=[*ARGUMENTS, *gpu, *rules], **options)
        try:
            yield Visit(context, address)
        finally:
            context.close()


def ask(page: Any, action: str, **data: Any) -> Any:
    """One of web/worker.js' actions."""
    return page.evaluate(ASK, [action, data])
