"""Structured output: only tokens that a JSON schema or a grammar allows, by llguidance.

A `Grammar` is compiled once; each request that is to keep to it has a `Constraint` of its own. Where a token is
chosen: `mask` its logits, `take` what was chosen, stop when `done`. `forced` and `try_tokens` save forward passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.opening import open_plain, read_bounded

from .schema import MAX_SCHEMA, read_schema

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

    from .model import Model

LONGEST = 300  # characters of llguidance's message: some list every name that there is
SEPARATED: JsonCompileOptions = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
STRICT: JsonCompileOptions = {"lenient": False}  # refuse what cannot be enforced, whatever the schema's x-guidance says
LIMITS = ("ParserTooComplex", "LexerTooComplex")
Logits = np.ndarray[Any, np.dtype[np.float32]]


class Grammar:
    """A compiled language; `start` gives the constraint of one request."""

    def __init__(self, matcher: LLMatcher, eos: frozenset[int], name: str) -> None:
        self._matcher, self._eos, self.name = matcher, eos, name

    @classmethod
    def from_json_schema(cls, schema: Mapping[str, Any] | str, tokenizer: Tokenizer, eos: frozenset[int],
                         vocabulary: int, name: str = "json_schema") -> Grammar:
        """The language of a JSON schema, with properties in the schema's order, spaced as `json.dumps` does.

        `vocabulary` is the width of the model's logits, `name` what messages call the schema. EdgeftError: it does not
        compile, says what llguidance cannot enforce, or allows nothing.
        """
        return cls._build("json", read_schema(schema, name), tokenizer, eos, vocabulary, name)

    @classmethod
    def from_lark(cls, text: str, tokenizer: Tokenizer, eos: frozenset[int], vocabulary: int,
                  name: str = "grammar") -> Grammar:
        """The language of the rule `start` of a grammar in llguidance's dialect of Lark; errors as for a schema."""
        if len(text) > MAX_SCHEMA:
            raise EdgeftError(f"{name}: {len(text)} characters, at most {MAX_SCHEMA} are read")
        return cls._build("lark", text, tokenizer, eos, vocabulary, name)

    @classmethod
    def _build(cls, kind: str, text: str, tokenizer: Tokenizer, eos: frozenset[int], vocabulary: int,
               name: str) -> Grammar:
        wide = max(vocabulary, tokenizer.get_vocab_size())
        known = tuple(sorted(token for token in eos if token < wide))
        try:
            return cls(_compiled(kind, text, tokenizer, known, wide), frozenset(known), name)
        except ImportError:
            raise EdgeftError(f"{name}: needs llguidance, which is not installed. "
                              "`pip install 'edgeft[grammar]'` brings it.") from None
        except ValueError as error:
            raise EdgeftError(f"{name}: {_one_line(str(error))}") from None

    def start(self) -> Constraint:
        """A constraint for one request, at its beginning."""
        return Constraint(self._matcher.deep_copy(), self._eos, self.name)


class Constraint:
    """Where one request stands in its grammar."""

    def __init__(self, matcher: LLMatcher, eos: frozenset[int], name: str) -> None:
        self._matcher, self._eos, self._name = matcher, eos, name
        self._ended = False

    @property
    def done(self) -> bool:
        """Whether nothing more may follow: the answer is whole, with or without an end-of-sequence token."""
        return self._ended or (self._matcher.is_stopped() and self._matcher.is_accepting())

    def mask(self, logits: Logits) -> None:
        """Set logits [vocab] of forbidden tokens to -inf, in place.

        End-of-sequence is allowed where the answer may end, all of its tokens alike.
        """
        allowed = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        if self._matcher.is_error():  # llguidance then allows the end, in the middle of whatever it was
            raise EdgeftError(f"{self._name}: {_stuck(self._matcher)}")
        count = min(logits.size, allowed.size)
        logits[count:] = -np.inf
        np.copyto(logits[:count], -np.inf, where=allowed[:count] == 0)

    def forced(self) -> list[int]:
        """Tokens that the grammar leaves no choice about, in order; empty where there is a choice or the end."""
        return [] if self._ended else self._matcher.compute_ff_tokens()

    def take(self, token: int) -> None:
        """Go on behind a token that the mask allowed."""
        if self._ended or not self._matcher.consume_token(token):
            raise EdgeftError(f"{self._name}: token {token} is not allowed here.")
        self._ended = token in self._eos or self._matcher.stop_reason() == "EndOfSentence"

    def try_tokens(self, tokens: Sequence[int]) -> int:
        """How many of these tokens the grammar accepts from here, one after the other; changes nothing."""
        return 0 if self._ended else self._matcher.validate_tokens(list(tokens))


def grammar_for(model: Model, json_schema: Mapping[str, Any] | str | None, grammar: str | None,
                name: str | None = None) -> Grammar | None:
    """What a request to a model asks for: a schema, a grammar or neither; UsageError if both."""
    if json_schema is not None and grammar is not None:
        raise UsageError("A JSON schema and a grammar both say what the answer must be: give one of them.")
    if json_schema is None and grammar is None:
        return None
    about = (model.tokenizer, model.eos, model.graphs.vocabulary)
    if json_schema is not None:
        return Grammar.from_json_schema(json_schema, *about, name=name or "json_schema")
    return Grammar.from_lark(grammar or "", *about, name=name or "grammar")


def read_options(model: Model, options: Mapping[str, Any]) -> dict[str, str | None]:
    """The command line's files as options of `generate`; compiled here, so that messages name the file."""
    json_schema, grammar = options["json_schema"], options["grammar"]
    if json_schema is not None and grammar is not None:
        raise UsageError("--json-schema and --grammar both say what the answer must be: give one of them.")
    texts = {"json_schema": _read(json_schema, "--json-schema"), "grammar": _read(grammar, "--grammar")}
    grammar_for(model, texts["json_schema"], texts["grammar"], str(json_schema or grammar))
    return texts


def _read(path: Path | None, option: str) -> str | None:
    if path is None:
        return None
    try:
        with open_plain(path, 4 * MAX_SCHEMA) as stream:
            return read_bounded(stream, 4 * MAX_SCHEMA).decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). {option} takes a file.") from None
    except ValueError as error:
        raise EdgeftError(f"{path}: is no text ({error})") from None


@lru_cache(maxsize=2)
def _vocabulary(tokenizer: Tokenizer, eos: tuple[int, ...], wide: int) -> LLTokenizer:
    """The tokenizer as llguidance wants it: the slow part, so kept for a model's next grammar."""
    from llguidance import LLTokenizer

    if tokenizer.padding or tokenizer.truncation:  # what it would do to a batch is not for a grammar's words
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.no_padding()
        tokenizer.no_truncation()
    try:
        return LLTokenizer(tokenizer.to_str(), n_vocab=wide, eos_token=list(eos) or None)
    except ValueError as error:
        raise ValueError(f"llguidance cannot take this bundle's tokenizer: {error}") from None


@lru_cache(maxsize=16)
def _compiled(kind: str, text: str, tokenizer: Tokenizer, eos: tuple[int, ...], wide: int) -> LLMatcher:
    """A matcher at its beginning; ValueError says what is wrong with the text."""
    from llguidance import LLMatcher, LLParserLimits

    vocabulary = _vocabulary(tokenizer, eos, wide)
    source = (LLMatcher.grammar_from_lark(text) if kind == "lark" else
              LLMatcher.grammar_from_json_schema(text, defaults=SEPARATED, overrides=STRICT))
    made = LLMatcher(vocabulary, source, log_level=0, limits=LLParserLimits(verbose_errors=False))
    wrong = made.get_error() or "; ".join(made.get_grammar_warnings())  # a warning: something would be ignored
    if wrong:
        raise ValueError(wrong)
    trial = made.deep_copy()
    allowed = np.unpackbits(np.frombuffer(trial.compute_bitmask(), np.uint8), bitorder="little")
    if trial.is_error():
        raise ValueError(_stuck(trial))
    if trial.is_accepting() and set(np.flatnonzero(allowed).tolist()) <= set(vocabulary.eos_tokens):
        raise ValueError("allows the empty answer alone")
    return made


def _stuck(matcher: LLMatcher) -> str:
    """Why a matcher cannot go on."""
    if matcher.stop_reason() in LIMITS:
        return f"is too complex ({_one_line(matcher.get_error())})"
    return "allows no text from here on, or none that this bundle's tokens can write"


def _one_line(message: str) -> str:
    """llguidance's message: its first line, and the reason where that comes further down."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["does not compile"]
    reasons = [line for line in lines[1:] if line.startswith("error: ")]
    text = " ".join([lines[0], *reasons[:1]])
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
