"""Chat templates, rendered by sandboxed Jinja: a template is a stranger's program.

It runs in a process of its own that may open no file, start no process and take little time and memory: the sandbox
guards what a template reaches, not what it costs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .errors import EdgeftError
from .opening import Refused, open_inside, open_plain, parse_json, read_bounded

MAX_TEMPLATE = 256 << 10
MAX_CONFIG = 4 << 20
MAX_TEXT = 8 << 20
MAX_MESSAGES = 16 << 20  # bytes of JSON that are given to a template
SECONDS = 10.0  # for one rendering; a real template takes less than a millisecond
STARTING = 15.0  # more for the first: the process starts
TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
WORKER = Path(__file__).with_name("chat_worker.py")


def chat_renderer(template: str, special_tokens: dict[str, str], *, seconds: float = SECONDS) -> Renderer:
    """A function (messages, add_generation_prompt) -> text; EdgeftError when the template is broken or refuses."""
    made = Renderer(template, special_tokens, seconds)
    made.ready()
    return made


class Renderer:
    """One template in its process, which is started again after a rendering that had to be stopped."""

    def __init__(self, template: str, special_tokens: dict[str, str], seconds: float = SECONDS) -> None:
        if len(template) > MAX_TEMPLATE:
            raise EdgeftError(f"chat template: {len(template)} characters, at most {MAX_TEMPLATE} are read")
        self._job = json.dumps({"template": template, "tokens": special_tokens}).encode() + b"\n"
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._start()

    def __call__(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        line = json.dumps({"messages": messages, "add": add_generation_prompt}).encode() + b"\n"
        if len(line) > MAX_MESSAGES:
            raise EdgeftError(f"chat template: {len(line)} bytes of messages, at most {MAX_MESSAGES} are taken")
        with self._lock:
            answer = self._ask(line)
        if "error" in answer:
            raise EdgeftError(f"chat template: {answer['error']}") from None
        return str(answer["text"])

    def ready(self) -> None:
        """Wait until the template is read; EdgeftError if it cannot be."""
        with self._lock:
            self._prepare()

    def _ask(self, line: bytes) -> dict[str, Any]:
        return self._exchange(self._prepare(), line, self._seconds)

    def _prepare(self) -> subprocess.Popen[bytes]:
        process = self._process or self._start()
        if not self._ready:
            said = self._exchange(process, self._job, STARTING)
            if "error" in said:
                self._end()
                raise EdgeftError(f"chat template: {said['error']}")
            self._ready = True
        return process

    def _start(self) -> subprocess.Popen[bytes]:
        places = [_place(name) for name in ("jinja2", "markupsafe")]
        if not sys.executable or not all(places):
            raise EdgeftError("chat template: needs jinja2, and a Python interpreter for a process of its own.")
        process = subprocess.Popen([sys.executable, "-I", "-S", str(WORKER), str(MAX_TEXT), *places],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._process, self._ready = process, False
        self._finalizer = weakref.finalize(self, _stop, process)
        return process

    def _exchange(self, process: subprocess.Popen[bytes], line: bytes, seconds: float) -> dict[str, Any]:
        """One line there, one line back; a process that takes longer is killed."""
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            said = process.stdout.readline(6 * MAX_TEXT + 100)  # a character takes up to 6 bytes in JSON
            answer = parse_json(said, "chat template") if said.endswith(b"\n") else None
        except OSError:
            answer = None
        finally:
            timer.cancel()
        if answer is None:
            self._end()
            raise EdgeftError(f"chat template: refused these messages (it took more than {seconds:g} s, or more memory "
                              "than it may)")
        return answer

    def _end(self) -> None:
        self._finalizer()
        self._process = None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and close its pipes."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # what it was to read is still in the buffer
                stream.close()


def _place(package: str) -> str:
    """The folder that a package is imported from; empty where it is not installed."""
    found = importlib.util.find_spec(package)
    return str(Path(found.origin).parent.parent) if found is not None and found.origin else ""


def read_chat_template(folder: Path, listed: Collection[str] | None = None) -> Renderer | None:
    """The renderer of a model folder, or of a bundle with its `listed` files; None where it has no chat template.

    A bundle's is not `ready` yet: it gets so while the graphs are opened.
    """
    config_path = Path(folder) / "tokenizer_config.json"
    said = _read(Path(folder), "tokenizer_config.json", MAX_CONFIG, listed)
    config: dict[str, Any] = parse_json(said, config_path) if said is not None else {}
    own = _read(Path(folder), "chat_template.jinja", 4 * MAX_TEMPLATE, listed)
    try:
        template = own.decode("utf-8") if own is not None else config.get("chat_template")
    except UnicodeDecodeError:
        raise EdgeftError(f"{folder}: its chat_template.jinja is no text in UTF-8") from None
    if not isinstance(template, str):
        return None
    tokens = {}
    for name in TOKENS:
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token or ""
        if not isinstance(text, str):
            raise EdgeftError(f"{config_path}: {name} must be text, found {token!r:.60}")
        tokens[name] = text
    made = Renderer(template, tokens)
    if listed is None:
        made.ready()
    return made


def _read(folder: Path, name: str, limit: int, listed: Collection[str] | None) -> bytes | None:
    """A file's bytes; None where it is not there, or not one of a bundle's."""
    if name not in listed if listed is not None else not (folder / name).is_file():
        return None
    try:
        with open_inside(folder, name, limit) if listed is not None else open_plain(folder / name, limit) as stream:
            return read_bounded(stream, limit)
    except (Refused, OSError) as error:
        raise EdgeftError(f"{folder}: {name} {error}") from None
