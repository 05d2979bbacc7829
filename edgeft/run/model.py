"""A bundle in memory: prompts in, text out."""

from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from edgeft.contract.bundle import check_runnable, read_bundle
from edgeft.contract.chat import read_chat_template
from edgeft.contract.data import encode_text
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.events import event
from edgeft.contract.memory import rss_mib, share_arena
from edgeft.contract.prompt import PromptFormat
from edgeft.contract.shown import faithful

from . import classify as classes
from .adapters import Adapter, length_of
from .budget import MIB, Budget
from .constrain import grammar_for
from .engine import Engine
from .fixed import FixedLanes
from .growing import GrowingLanes
from .lanes import Lanes
from .prefixes import Prefixes
from .prepared import PREPARED
from .provider import Wanted
from .request import Generation, Request, deadline_of
from .sampling import Sampler
from .session import Graphs
from .shelf import Shelf
from .tokenizer import read_tokenizer, refusing
from .weights import exported_weights

if TYPE_CHECKING:
    from .aio import Worker

Adapters = Mapping[str, float]
Messages = Sequence[Mapping[str, str]]


LONGEST = 512  # characters a token of the context: a prompt beyond cannot fit, and tokenizing it takes memory and time
RUNTIME = 60 * MIB  # what onnxruntime and tokenizers still take after loading


class Model:
    """A loaded bundle; any number of requests may be open at once, from several threads or tasks too.

    `memory`: MiB that this process may take; what adapters and kept prompts take is bounded by it.
    `lookup`: whether drafts are made of tokens that were there before; by itself where answers stay exact (fp32).
    `keep_prompts`: MiB for keys and values of
    prompts that may come again. `several`: keep a graph open for each kind of step, also without prepared weights.
    `provider`: another execution provider than the device file's.
    """

    def __init__(self, bundle: str | Path, *, threads: int | None = None, memory: int | None = None,
                 lookup: bool | None = None, keep_prompts: int = 64, several: bool = False,
                 provider: Wanted = None) -> None:
        before, began = rss_mib() * MIB, time.perf_counter()
        share_arena()
        self.bundle = read_bundle(Path(bundle))
        check_runnable(self.bundle)
        weights = exported_weights(self.bundle)
        if not os.path.lexists(self.bundle.folder / PREPARED):
            weights.start()  # reads beside all that follows
        self.bundle.check_files(whole=False)
        self.tokenizer: Tokenizer = read_tokenizer(self.bundle)
        template = read_chat_template(self.bundle.folder, set(self.bundle.manifest["files"]))
        self.render = faithful(template) if template else None
        self.graphs = Graphs(self.bundle, threads, several=several, provider=provider, weights=weights)
        if template is not None:
            template.ready()
        self.budget = Budget(self._limit(memory), int(before) + RUNTIME + self.graphs.weight_bytes)
        self.graphs.frugal = self.budget.limit < self.budget.fixed + 2 * self.graphs.weight_bytes + RUNTIME
        self.shelf = Shelf(self.bundle, self.budget)
        # int8 activations: a pass of several tokens rounds otherwise than one of a single token, and near ties flip
        self.lookup = lookup if lookup is not None else self.bundle.manifest["quant"]["kind"] == "fp32"
        prefixes = Prefixes(self.budget, keep_prompts * MIB) if keep_prompts and self.graphs.shared else None
        self.engine = Engine(self._lanes, prefixes, shelf=self.shelf)
        generation = self.bundle.manifest.get("generation", {})
        self.eos = frozenset(generation.get("eos", []))
        self.defaults = {key: generation[key] for key in ("temperature", "top_k", "top_p", "min_p",
                                                          "repetition_penalty") if generation.get(key) is not None}
        event("load", bundle=str(bundle), base=self.bundle.fingerprint, quant=self.bundle.manifest["quant"]["kind"],
              threads=self.threads, prepared=self.graphs.prepared is not None, adapters=len(self.bundle.adapters),
              limit_mib=self.budget.limit // MIB, seconds=round(time.perf_counter() - began, 3))

    def _limit(self, memory: int | None) -> int:
        """Bytes that the process may take: as it was told, else what the device file gives a bundle."""
        return (memory or int(self.bundle.manifest["device"]["limits"]["budget_mib"])) * MIB

    @cached_property
    def worker(self) -> Worker:
        """Runs the engine for asyncio."""
        from .aio import Worker

        return Worker(self.engine)

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.bundle.context

    @property
    def threads(self) -> int:
        """Threads of one pass."""
        return self.graphs.threads

    def load_adapter(self, name: str, path: str | Path | None = None) -> Adapter:
        """Open and check an adapter: one of the bundle's by name, or any adapter file under a new name."""
        return self.shelf.load(name, Path(path) if path is not None else None)

    def register_adapter(self, name: str, path: str | Path) -> None:
        """Offer any adapter file under a new name; it is opened and checked when a request first uses it."""
        self.shelf.register(name, Path(path))

    def unload_adapter(self, name: str) -> None:
        """Free a loaded adapter; UsageError while a running request uses it."""
        self.shelf.unload(name)

    def adapters_for(self, wanted: Adapters | None) -> dict[str, float]:
        """What a request uses: what it asks for, or with None the bundle's default."""
        if wanted is None:
            return {self.bundle.default_adapter: 1.0} if self.bundle.default_adapter else {}
        return {name: float(scale) for name, scale in wanted.items()}

    def task(self, adapters: Adapters | None = None) -> str:
        """What a request with these adapters is: text-generation, text-classification or feature-extraction."""
        return classes.task_of(self, self.adapters_for(adapters))

    def prompt_format(self, adapters: Adapters) -> PromptFormat:
        """How prompts are phrased for these adapters; UsageError if they were trained on different ways."""
        formats = {self.shelf.open(name).prompt for name in adapters} or {self.bundle.prompt}
        if len(formats) > 1:
            raise UsageError(f"Adapters {', '.join(adapters)} were trained on different prompt formats or templates "
                             f"({', '.join(sorted(item.kind for item in formats))}). Use --raw and phrase it yourself.")
        return formats.pop()

    def encode(self, prompt: str | Messages, adapters: Adapters, raw: bool = False,
               task: str | None = None) -> list[int]:
        """Token ids of a prompt, phrased as the adapters were trained, by the template of `task` where they have
        several; a list of messages goes through the chat template."""
        if isinstance(prompt, str):
            text = prompt if raw else self.prompt_format(adapters).apply(prompt, self.render, task)
        elif self.render is None:
            raise EdgeftError(f"{self.bundle.folder}: has no chat template; give the prompt as text.")
        elif not (prompt and all(isinstance(item.get(key), str) for item in prompt for key in ("role", "content"))):
            raise UsageError("Each message needs a role and a content, both text.")
        else:
            text = self.render([dict(message) for message in prompt], True)
        if len(text) > LONGEST * self.context:
            raise EdgeftError(f"The prompt has {len(text):,} characters, and the bundle's context is {self.context} "
                              f"tokens: no more than {LONGEST} characters a token are read.")
        with refusing(f"{self.bundle.folder}: its tokenizer cannot encode this"):
            return encode_text(self.tokenizer, text)

    def generate(self, prompt: str | Messages, *, adapters: Adapters | None = None, **options: Any) -> Generation:
        """Answer one prompt.

        options: task (whose prompt template to use), max_tokens=128, timeout (seconds from this call on; the answer
        ends there with finish "timeout"), temperature, top_k, top_p, min_p, repetition_penalty, seed, stop=(),
        raw=False, json_schema, grammar.
        """
        return self.batch([prompt], adapters=[adapters], **options)[0]

    def stream(self, prompt: str | Messages, *, adapters: Adapters | None = None,
               **options: Any) -> Generator[str, None, Generation]:
        """Answer one prompt, piece by piece as the text becomes known; options as in `generate`.

        Closing it, or leaving its loop, ends the request; `yield from` gives the whole Generation.
        """
        whole = Generation()
        for _, piece in self._run(self.requests([prompt], [adapters], **options)):
            if isinstance(piece, Generation):
                whole = piece
            else:
                yield piece
        return whole

    def astream(self, prompt: str | Messages, *, adapters: Adapters | None = None,
                **options: Any) -> AsyncIterator[str]:
        """As `stream`, for asyncio: any number of these run at once, in one batch; options as in `generate`."""
        from .aio import astream  # asyncio takes 15 ms to import

        return astream(self, prompt, adapters, options)

    async def agenerate(self, prompt: str | Messages, *, adapters: Adapters | None = None,
                        **options: Any) -> Generation:
        """As `generate`, for asyncio: any number of these run at once, in one batch."""
        from .aio import agenerate

        return await agenerate(self, prompt, adapters, options)

    def batch(self, prompts: Sequence[str | Messages], *, adapters: Sequence[Adapters | None] | None = None,
              **options: Any) -> list[Generation]:
        """Answer several prompts at once, each with its own adapters; options as in `generate`, and `task` may be a
        list with one for each."""
        wanted = adapters if adapters is not None else [None] * len(prompts)
        requests = self.requests(prompts, wanted, **options)
        done: dict[int, Generation] = {}
        for request, piece in self._run(requests):
            if isinstance(piece, Generation):
                done[id(request)] = piece
        return [done[id(request)] for request in requests]

    def _run(self, requests: Sequence[Request]) -> Iterator[tuple[Request, str]]:
        with closing(self.engine.run(requests)) as events:
            for request, piece in events:
                if isinstance(piece, Exception):
                    try:
                        raise piece
                    finally:
                        del piece  # held by a frame of its own traceback, it would keep an adapter's file open
                yield request, piece

    def classify(self, text: str | Sequence[str], *,
                 adapters: Adapters | Sequence[Adapters | None] | None = None) -> Any:
        """Labels with scores, likeliest first: of one text a list of (label, score), of several a list of those.

        `adapters` are for all texts, or a list with one set for each.
        """
        texts = [text] if isinstance(text, str) else list(text)
        found = classes.classify(self, texts, self._per_text(adapters, len(texts)))
        return found[0] if isinstance(text, str) else found

    def embed(self, texts: Sequence[str], *, adapters: Adapters | Sequence[Adapters | None] | None = None) -> Any:
        """Embeddings [n, hidden] of length 1: the mean hidden state of an encoder, the last one of a decoder."""
        return classes.embed(self, list(texts), self._per_text(adapters, len(texts)))

    def _per_text(self, adapters: Adapters | Sequence[Adapters | None] | None, count: int) -> list[dict[str, float]]:
        wanted = [adapters] * count if adapters is None or isinstance(adapters, Mapping) else adapters
        return [self.adapters_for(item) for item in wanted]

    def requests(self, prompts: Sequence[str | Messages], wanted: Sequence[Adapters | None],
                 **options: Any) -> list[Request]:
        """Requests for the engine, checked; options as in `generate`."""
        try:
            return self._requests(prompts, wanted, **options)
        except EdgeftError as error:
            event("refusal", adapters=wanted, reason=str(error))
            raise

    def _requests(self, prompts: Sequence[str | Messages], wanted: Sequence[Adapters | None], *, max_tokens: int = 128,
                  timeout: float | None = None, stop: Sequence[str] | str = (), raw: bool = False,
                  seed: int | None = None, task: str | Sequence[str | None] | None = None, lookup: bool | None = None,
                  json_schema: Mapping[str, Any] | str | None = None, grammar: str | None = None,
                  **sampling: Any) -> list[Request]:
        deadline = deadline_of(timeout, time.perf_counter())
        tasks = [task] * len(prompts) if task is None or isinstance(task, str) else list(task)
        if len(prompts) != len(wanted) or len(prompts) != len(tasks) or not prompts:
            raise UsageError(f"{len(prompts)} prompts, {len(wanted)} sets of adapters and {len(tasks)} tasks do not "
                             "match.")
        used = [self.adapters_for(item) for item in wanted]
        self.shelf.check(used)
        for chosen in used:
            classes.check_generates(self, chosen)
        chosen_sampling = {**self.defaults, **{key: value for key, value in sampling.items() if value is not None}}
        language = grammar_for(self, json_schema, grammar)
        made = []
        for prompt, chosen, name in zip(prompts, used, tasks, strict=True):
            made.append(Request(
                self.encode(prompt, chosen, raw, name), chosen, _sampler(chosen_sampling, seed), self.tokenizer,
                self.eos, self.context, [stop] if isinstance(stop, str) else list(stop), max_tokens,
                language.start() if language else None, lookup=self.lookup if lookup is None else lookup,
                soft=length_of(self.shelf.prefix(chosen)), deadline=deadline))
        for request in made:
            self._check_fits(request)
        return made

    def _check_fits(self, request: Request) -> None:
        if request.max_tokens < 1:
            raise UsageError(f"max_tokens must be at least 1, found {request.max_tokens}.")
        if not request.prompt:
            raise UsageError("The prompt is empty: there is nothing to go on from.")
        if self.graphs.vocabulary and not 0 <= max(request.prompt) < self.graphs.vocabulary:
            raise EdgeftError(f"{self.bundle.folder}: its tokenizer gives token {max(request.prompt)}, and its graph "
                              f"has {self.graphs.vocabulary}. They do not belong together; export it again.")
        if len(request.prompt) + request.soft >= self.context:
            after = f" after a soft prompt of {request.soft}" if request.soft else ""
            raise EdgeftError(f"The prompt has {len(request.prompt)} tokens{after}, and the bundle's context is "
                              f"{self.context}: no room is left for an answer.")

    def _lanes(self, capacity: int, rows: int) -> Lanes | GrowingLanes:
        kind = Lanes if self.graphs.shared else FixedLanes if self.graphs.static else GrowingLanes
        return kind(self.graphs, self.shelf, capacity, rows)

    def lanes(self, used: Sequence[Adapters], tokens: int) -> Lanes | GrowingLanes:
        """A batch of one's own, whose row i uses adapters used[i]; `tokens` of prompt and answer together."""
        self.shelf.check(used)
        soft = max(length_of(self.shelf.prefix(row)) for row in used)
        made = self._lanes(min(self.context, soft + tokens), len(used))
        try:
            for row in used:
                made.join(row)
        except EdgeftError:
            made.close()
            raise
        return made


def _sampler(options: dict[str, Any], seed: int | None) -> Sampler:
    try:
        return Sampler(seed=seed, **options)
    except TypeError as error:
        unknown = re.search(r"'(\w+)'", str(error))
        raise UsageError(f"There is no option {unknown[1] if unknown else error!r} for generating.") from None
