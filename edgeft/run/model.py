"""A bundle in memory: prompts in, text out."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgeft.contract.bundle import check_runnable, read_bundle
from edgeft.contract.chat import read_chat_template
from edgeft.contract.data import encode_text
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.memory import peak_mib
from edgeft.contract.prompt import PromptFormat

from . import classify as classes
from .adapters import Adapter, Shelf
from .constrain import Constraint, grammar_for
from .detokenize import Detokenizer
from .sampling import Sampler
from .session import Cache, Session, Slots

Adapters = Mapping[str, float]
Messages = Sequence[Mapping[str, str]]


class Generation(str):
    """An answer: the text itself, with what it took beside it."""

    tokens: list[int]
    prompt_tokens: list[int]
    adapters: dict[str, float]
    finish: str  # eos | stop | length | context
    seed: int | None
    prefill_seconds: float
    decode_seconds: float

    @property
    def text(self) -> str:
        """The answer as a plain string."""
        return str(self)

    def to_json(self) -> dict[str, Any]:
        """What `edgeft run --json` prints; speeds in tokens per second, memory in MiB."""
        steps = len(self.tokens) - 1  # the first token comes out of the prefill
        return {"text": str(self), "tokens": self.tokens, "prompt_tokens": self.prompt_tokens,
                "adapters": self.adapters, "finish": self.finish, "seed": self.seed,
                "prefill_tokens_per_s": round(len(self.prompt_tokens) / max(self.prefill_seconds, 1e-9), 2),
                "decode_tokens_per_s": round(steps / self.decode_seconds, 2) if steps > 0 else None,
                "peak_rss_mib": round(peak_mib(), 1)}


class Model:
    """A loaded bundle. One request or batch at a time; adapters change between requests at no cost."""

    def __init__(self, bundle: str | Path, *, threads: int | None = None) -> None:
        self.bundle = read_bundle(Path(bundle))
        check_runnable(self.bundle)
        self.bundle.check_files(whole=False)
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_file(str(self.bundle.folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise EdgeftError(f"{self.bundle.folder}: its tokenizer.json cannot be read ({error})") from None
        self.render = read_chat_template(self.bundle.folder)
        self.session = Session(self.bundle, threads)
        self.shelf = Shelf(self.bundle)
        generation = self.bundle.manifest.get("generation", {})
        self.eos = frozenset(generation.get("eos", []))
        self.defaults = {key: generation[key] for key in ("temperature", "top_k", "top_p", "min_p",
                                                          "repetition_penalty") if generation.get(key) is not None}

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.session.context

    def load_adapter(self, name: str, path: str | Path | None = None) -> Adapter:
        """Make an adapter ready: one of the bundle's by name, or any adapter file under a new name."""
        return self.shelf.load(name, Path(path) if path is not None else None)

    def unload_adapter(self, name: str) -> None:
        """Free a loaded adapter."""
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
        formats = {self.shelf.load(name).prompt for name in adapters} or {self.bundle.prompt}
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
        else:
            text = self.render([dict(message) for message in prompt], True)
        return encode_text(self.tokenizer, text)

    def generate(self, prompt: str | Messages, *, adapters: Adapters | None = None, **options: Any) -> Generation:
        """Answer one prompt.

        options: task (whose prompt template to use), max_tokens=128, temperature, top_k, top_p, min_p,
        repetition_penalty, seed, stop=(), raw=False, json_schema (a dict or JSON text) or grammar (Lark text), which
        the answer must keep to.
        """
        return self.batch([prompt], adapters=[adapters], **options)[0]

    def stream(self, prompt: str | Messages, *, adapters: Adapters | None = None, **options: Any) -> Iterator[str]:
        """Answer one prompt, piece by piece as the text becomes known; options as in `generate`."""
        for _, piece in self._run([prompt], [adapters], **options):
            if isinstance(piece, str) and not isinstance(piece, Generation):
                yield piece

    def batch(self, prompts: Sequence[str | Messages], *, adapters: Sequence[Adapters | None] | None = None,
              **options: Any) -> list[Generation]:
        """Answer several prompts at once, each with its own adapters; options as in `generate`, and `task` may be a
        list with one for each."""
        wanted = adapters if adapters is not None else [None] * len(prompts)
        done: dict[int, Generation] = {}
        for row, piece in self._run(prompts, wanted, **options):
            if isinstance(piece, Generation):
                done[row] = piece
        return [done[row] for row in range(len(prompts))]

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

    def _run(self, prompts: Sequence[str | Messages], wanted: Sequence[Adapters | None], *, max_tokens: int = 128,
             stop: Sequence[str] | str = (), raw: bool = False, seed: int | None = None,
             task: str | Sequence[str | None] | None = None, json_schema: Mapping[str, Any] | str | None = None,
             grammar: str | None = None, **sampling: Any) -> Iterator[tuple[int, str]]:
        """Yield (row, piece of text) as it comes, and (row, Generation) when a row has ended."""
        tasks = [task] * len(prompts) if task is None or isinstance(task, str) else list(task)
        if len(prompts) != len(wanted) or len(prompts) != len(tasks) or not prompts:
            raise UsageError(f"{len(prompts)} prompts, {len(wanted)} sets of adapters and {len(tasks)} tasks do not "
                             "match.")
        used = [self.adapters_for(item) for item in wanted]
        for chosen in used:
            classes.check_generates(self, chosen)
        ids = [self.encode(prompt, chosen, raw, name)
               for prompt, chosen, name in zip(prompts, used, tasks, strict=True)]
        longest = max(map(len, ids))
        soft = [max([self.shelf.load(name).length for name, scale in row.items() if scale], default=0) for row in used]
        if min(map(len, ids)) == 0:
            raise UsageError("The prompt is empty: there is nothing to go on from.")
        for length, before in zip(map(len, ids), soft, strict=True):
            if length + before >= self.context:
                after = f" after a soft prompt of {before}" if before else ""
                raise EdgeftError(f"The prompt has {length} tokens{after}, and the bundle's context is {self.context}: "
                                  "no room is left for an answer.")
        chosen_sampling = {**self.defaults, **{key: value for key, value in sampling.items() if value is not None}}
        stops = [stop] if isinstance(stop, str) else list(stop)
        language = grammar_for(self, json_schema, grammar)
        rows = [_Row(self, row, prompt, used[row], _sampler(chosen_sampling, seed), stops, max_tokens,
                     language.start() if language else None)
                for row, prompt in enumerate(ids)]
        cache = self.cache(used, longest + max_tokens)
        yield from _decode(cache, rows)

    def cache(self, used: Sequence[Adapters], tokens: int) -> Cache:
        """Caches for a batch whose row i uses adapters used[i]; `tokens` of prompt and answer together."""
        slots = self.slots(used)
        return self.session.cache(len(used), min(self.context, max(slots.lengths, default=0) + tokens), slots)

    def slots(self, used: Sequence[Adapters]) -> Slots:
        """What a batch's adapters put into the graph; the session becomes the scaled one if they need it."""
        slots = self.shelf.bind(used)
        if slots.scaled and not self.session.scaled:  # from now on: it serves all that the other does
            self._reopen(scaled=True)
        return slots

    def _reopen(self, *, scaled: bool) -> None:
        """The other graph in place of this one, whose memory is free first; this one again if it cannot be opened."""
        threads, self.session = self.session.threads, None  # type: ignore[assignment]
        try:
            self.session = Session(self.bundle, threads, scaled=scaled)
        except EdgeftError:
            self.session = Session(self.bundle, threads, scaled=not scaled)
            raise


def _sampler(options: dict[str, Any], seed: int | None) -> Sampler:
    try:
        return Sampler(seed=seed, **options)
    except TypeError as error:
        unknown = re.search(r"'(\w+)'", str(error))
        raise UsageError(f"There is no option {unknown[1] if unknown else error!r} for generating.") from None


def _decode(cache: Cache, rows: Sequence[_Row]) -> Iterator[tuple[int, str]]:
    """Prefill, then one token for each row at a time until every row has ended."""
    start = time.perf_counter()
    logits = cache.prefill([row.prompt for row in rows])
    middle = time.perf_counter()
    step = np.zeros((len(rows), 1), np.int64)
    while True:
        for row in rows:
            if row.finish:
                continue
            piece = row.take(logits[row.index], cache)
            if piece:
                yield row.index, piece
            if row.finish:
                yield row.index, row.result(middle - start, time.perf_counter() - middle)
            else:
                step[row.index, 0] = row.tokens[-1]
        if all(row.finish for row in rows):
            return
        # an ended row stays in the batch with nothing new; its lane costs what it costs until all are done
        logits = cache.forward(step, [0 if row.finish and cache.lengths[row.index] >= cache.capacity else 1
                                      for row in rows])[:, 0]


class _Row:
    """One request while it runs."""

    def __init__(self, model: Model, index: int, prompt: list[int], adapters: dict[str, float], sampler: Sampler,
                 stops: list[str], max_tokens: int, constraint: Constraint | None = None) -> None:
        self.constraint = constraint
        self.model, self.index, self.prompt, self.adapters = model, index, prompt, adapters
        self.sampler, self.stops, self.max_tokens = sampler, stops, max_tokens
        self.tokens: list[int] = []
        self.text = ""
        self.shown = 0
        self.finish = ""
        self._decoder = Detokenizer(model.tokenizer)

    def take(self, logits: np.ndarray[Any, Any], cache: Cache) -> str:
        """Choose the next token; returns the text that is now certain."""
        if self.constraint:
            logits = logits.copy()
            self.constraint.mask(logits)
        token = self.sampler(logits, self.prompt + self.tokens if self.sampler.repetition_penalty != 1 else [])
        self.tokens.append(token)
        if self.constraint:
            self.constraint.take(token)
        if token in self.model.eos:
            self.finish = "eos"
        else:
            self.text += self._decoder.step(token)
            self._stop_at_text()
            if not self.finish and self.constraint and self.constraint.done:
                self.finish = "eos"  # whole without one: the pass that would only say so is saved
            elif not self.finish and len(self.tokens) >= self.max_tokens:
                self.finish = "length"
            elif not self.finish and cache.lengths[self.index] + 1 >= self.model.context:
                self.finish = "context"
        if self.finish not in ("", "stop"):
            self.text += self._decoder.flush()
        certain = len(self.text) if self.finish else len(self.text) - _overlap(self.text, self.stops)
        piece, self.shown = self.text[self.shown : certain], max(self.shown, certain)
        return piece

    def _stop_at_text(self) -> None:
        found = [position for position in (self.text.find(stop) for stop in self.stops if stop) if position >= 0]
        if found:
            self.text, self.finish = self.text[: min(found)], "stop"

    def result(self, prefill_seconds: float, decode_seconds: float) -> Generation:
        made = Generation(self.text)
        made.tokens, made.prompt_tokens, made.adapters = self.tokens, self.prompt, self.adapters
        made.finish, made.seed = self.finish, self.sampler.seed if self.sampler.temperature else None
        made.prefill_seconds, made.decode_seconds = prefill_seconds, decode_seconds
        return made


def _overlap(text: str, stops: Sequence[str]) -> int:
    """How much of the text's end could be the start of a stop text: it is held back until known."""
    return max((size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0)
