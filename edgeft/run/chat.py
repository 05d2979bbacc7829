"""`edgeft chat`: a conversation in the terminal; adapters change between two turns."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from edgeft.contract.errors import EdgeftError

from .classify import check_generates
from .constrain import read_options
from .model import Model
from .request import Generation

HELP = """/adapter NAME[:SCALE] ...  use these adapters; /adapter none for the bare base
/adapters                  what the bundle has
/task NAME                 phrase prompts by this task's template
/reset                     forget the conversation
/quit                      leave (or Ctrl-D); Ctrl-C ends an answer"""
ENDS = {"timeout": "[the answer was ended: its time is over]", "context": "[the context is full]"}


def chat(bundle: Path, adapters: Mapping[str, float] | None, system: str | None, sampling: dict[str, Any],
         memory: int | None = None) -> None:
    """Read turns from stdin and stream answers to stdout until the end of input."""
    model = Model(bundle, memory=memory)
    check_generates(model, model.adapters_for(adapters))
    talk = Conversation(model, model.adapters_for(adapters), system, sampling | read_options(model, sampling))
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{bundle.name}: {talk.describe()}. /help lists commands.", file=sys.stderr)
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            return
        if line.strip() == "/quit":
            return
        if not line.strip():
            continue
        try:
            talk.turn(line.strip())
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("\n[stopped]", file=sys.stderr)  # the answer, not the conversation
        except EdgeftError as error:  # a turn that fails is no reason to lose the conversation
            print(error, file=sys.stderr)


def show(pieces: Generator[str, None, Generation], heard: list[str] | None = None) -> Generation:
    """Write an answer to stdout as it comes, and a line's end behind it; `heard` gets the pieces."""
    try:
        while True:
            piece = next(pieces)
            if heard is not None:
                heard.append(piece)
            print(piece, end="", flush=True)
    except StopIteration as ended:
        print(flush=True)
        answer: Generation = ended.value
        return answer


class Conversation:
    """The messages so far and the adapters in use."""

    def __init__(self, model: Model, adapters: dict[str, float], system: str | None, sampling: dict[str, Any]) -> None:
        self.model, self.adapters, self.sampling = model, adapters, sampling
        self.system = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = list(self.system)
        prompt = model.prompt_format(adapters)  # a name that is not there fails before the first turn
        if sampling.get("task"):
            prompt.template(sampling["task"])
        if system and not self.templated:
            raise EdgeftError("--system needs a bundle with a chat template and an adapter that was trained on chats "
                              "or on none.")

    @property
    def templated(self) -> bool:
        """Whether turns go through the chat template; an adapter trained on prompt and completion takes each
        turn by itself."""
        return self.model.render is not None and self.model.prompt_format(self.adapters).kind != "pair"

    def describe(self) -> str:
        """The adapters in use, in words."""
        used = ", ".join(f"{name} at {scale:g}" for name, scale in self.adapters.items())
        return f"adapter {used}" if used else "no adapter"

    def turn(self, line: str) -> None:
        """One line of the user: a command or a message."""
        word, _, rest = line.partition(" ")
        if word == "/help":
            print(HELP)
        elif word == "/reset":
            self.messages = list(self.system)
        elif word == "/adapters":
            print(", ".join(self.model.bundle.adapters) or "none")
        elif word == "/task":
            self.model.prompt_format(self.adapters).template(rest.strip())
            self.sampling = {**self.sampling, "task": rest.strip()}
        elif word == "/adapter":
            self._switch(rest.split())
        elif word.startswith("/"):
            print(f"There is no command {word}.\n{HELP}", file=sys.stderr)
        else:
            self._answer(line)

    def _switch(self, names: list[str]) -> None:
        wanted: dict[str, float] = {}
        for text in names if names != ["none"] else []:
            name, _, scale = text.partition(":")
            try:
                wanted[name] = float(scale or 1)
            except ValueError:
                raise EdgeftError(f"{text}: the scale must be a number.") from None
        self.model.prompt_format(wanted)
        self.adapters = wanted
        print(self.describe(), file=sys.stderr)

    def _answer(self, line: str) -> None:
        if not self.templated:
            prompt: Any = line
        else:
            self.messages.append({"role": "user", "content": line})
            prompt = self._fitting()
        pieces: list[str] = []
        try:
            answer = show(self.model.stream(prompt, adapters=self.adapters, **self.sampling), pieces)
            if answer.finish in ENDS:
                print(ENDS[answer.finish], file=sys.stderr)
        finally:
            if self.templated:
                self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def _fitting(self) -> list[dict[str, str]]:
        """The messages, without the oldest turns where they no longer fit; said, never silent."""
        room = self.model.context - min(self.sampling.get("max_tokens") or 128, self.model.context // 2)
        dropped = 0
        turns = self.messages[len(self.system):]
        while len(turns) > 1 and len(self.model.encode([*self.system, *turns], self.adapters)) > room:
            turns, dropped = turns[2:], dropped + 1
        if dropped:
            print(f"[the {dropped} oldest turns no longer fit into {self.model.context} tokens]", file=sys.stderr)
            self.messages = [*self.system, *turns]
        return self.messages
