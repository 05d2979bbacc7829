"""Requests that must be refused, and adapters that must not be believed: what soak.py mixes among good ones."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

FILES = {"other base": "base fingerprint", "cut": "claims bytes|safetensors", "nan": "NaN", "shape": "declared",
         "no effect": "change nothing", "too large": "not a number"}
WORDS = {"too long": "no room is left", "schema": "json_schema", "grammar": "grammar", "unknown": "has no adapter",
         "option": "no option", "scale": "finite number", "no token": "max_tokens"}
SHORT = ("cancelled", "timeout")  # these end with a part of the answer
KINDS = (*FILES, *WORDS, *SHORT)
Drawn = tuple[str, str, int, dict[str, Any]]  # kind, adapter, number of the prompt, words


def spoil(bundle: Any, files: dict[str, Path], out: Path) -> dict[str, Path]:
    """Adapter files that must be refused, by kind, made of good ones."""
    from edgeft.contract.tensors import TensorFile, write_tensors

    out.mkdir(exist_ok=True)
    source = TensorFile(next(iter(files.values())))
    tensors = {name: np.array(source[name]) for name in source}
    name = next(key for key in tensors if key.endswith(".A"))
    changed: dict[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {
        "nan": lambda array: np.where(np.arange(array.shape[1]) == 1, np.float32("nan"), array),
        "shape": lambda array: array[:-1]}
    made = {kind: out / f"{kind.replace(' ', '-')}.safetensors" for kind in FILES}
    write_tensors(made["other base"], tensors, {**source.metadata, "base_fingerprint": "0" * 64})
    for kind, change in changed.items():
        write_tensors(made[kind], {**tensors, name: change(tensors[name])}, source.metadata)
    write_tensors(made["no effect"], {key: np.zeros_like(array) for key, array in tensors.items()}, source.metadata)
    write_tensors(made["too large"], {key: array * np.float32(1e30) for key, array in tensors.items()}, source.metadata)
    made["cut"].write_bytes(source.path.read_bytes()[: source.path.stat().st_size * 2 // 3])
    return made


class Hostile:
    """Good requests made hostile, run beside good ones."""

    def __init__(self, model: Any, draw: random.Random, files: dict[str, Path]) -> None:
        self.model, self.random, self.files, self._count = model, draw, files, 0

    def change(self, kind: str, words: dict[str, Any]) -> dict[str, Any]:
        """The words of a hostile request; a spoilt adapter is offered under a name of its own."""
        if kind in FILES:
            self._count += 1
            self.model.register_adapter(f"spoilt-{self._count}", self.files[kind])
            return {**words, "adapters": {f"spoilt-{self._count}": 1.0}}
        (used,) = words["adapters"]
        return {**words, **{
            "too long": {"prompt": words["prompt"] * self.model.context},
            "schema": {"json_schema": '{"type": "nothing"'},
            "grammar": {"grammar": "start: nobody"}, "unknown": {"adapters": {"nobody": 1.0}}, "option": {"heat": 1},
            "scale": {"adapters": {used: float("nan")}}, "no token": {"max_tokens": 0},
            "timeout": {"timeout": self.random.choice([1e-9, 0.002, 0.01])}}.get(kind, {})}

    def ended(self, kind: str, found: Any) -> bool:
        """Whether a request of this kind ended as it should."""
        import re

        from edgeft.contract.errors import EdgeftError

        if kind in FILES or kind in WORDS:
            return isinstance(found, EdgeftError) and bool(re.search((FILES | WORDS)[kind], str(found)))
        return isinstance(found, list)

    def together(self, drawn: Sequence[Drawn]) -> list[Any]:
        """Run in one batch by this thread: tokens, or the error, of each; a cancelled one after its first token."""
        found: list[Any] = [None] * len(drawn)
        requests: dict[Any, int] = {}
        for place, (_, _, _, words) in enumerate(drawn):
            try:
                (request,) = self.model.requests([words["prompt"]], [words["adapters"]], **_rest(words))
                requests[request] = place
            except Exception as error:
                found[place] = error
        with closing(self.model.engine.run(list(requests))) as events:
            for request, piece in events:
                place = requests[request]
                if isinstance(piece, Exception):
                    found[place] = piece
                elif hasattr(piece, "tokens"):
                    found[place] = piece.tokens
                for other, at in requests.items():  # whenever anyone gets a piece, before or in the middle of an answer
                    if drawn[at][0] == "cancelled":
                        other.cancel()
        self._forget(drawn)
        return found

    async def tasks(self, drawn: Sequence[Drawn]) -> list[Any]:
        """Run as tasks of an event loop; a cancelled one is left after its first piece."""
        found = list(await asyncio.gather(*(self._task(*one) for one in drawn), return_exceptions=True))
        while self.model.engine.busy:  # a request that was left ends with the pass that is under way
            await asyncio.sleep(0.001)
        self._forget(drawn)
        return found

    async def _task(self, kind: str, name: str, number: int, words: dict[str, Any]) -> list[int]:
        if kind == "cancelled":
            task = asyncio.create_task(self.model.agenerate(words["prompt"], adapters=words["adapters"],
                                                            **_rest(words)))
            await asyncio.sleep(self.random.choice([0, 0.002, 0.01]))
            if task.cancel():
                await asyncio.wait([task])
                return []
            return list(task.result().tokens)
        answer = await self.model.agenerate(words["prompt"], adapters=words["adapters"], **_rest(words))
        return list(answer.tokens)

    def _forget(self, drawn: Sequence[Drawn]) -> None:
        """Spoilt adapters were registered for this batch alone."""
        for kind, _, _, words in drawn:
            if kind in FILES:
                self.model.unload_adapter(next(iter(words["adapters"])))


def _rest(words: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in words.items() if key not in ("prompt", "adapters")}
