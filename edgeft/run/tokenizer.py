"""A bundle's tokenizer, as it was exported and within limits: it must not grow a text beyond measure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer

from edgeft.contract.bundle import Bundle
from edgeft.contract.errors import EdgeftError
from edgeft.contract.opening import count_values

MAX_TOKENIZER = 64 << 20  # bytes; the largest ones of today have 35 MiB
MAX_VALUES = 3_000_000  # of its JSON: each may take 32 bytes while it is read; Gemma's 262,144 tokens need 2.2 million
MAX_GROWTH = 64  # characters that may come of one
MAX_ADDED = 64  # tokens that a post-processor may put around a text
TRIALS = ("a", "the 1st\n", "\u00e9\U0001f600", "")
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever the library raises into an EdgeftError: bare Exceptions, and panics, which are not even these."""
    try:
        yield
    except (EdgeftError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise EdgeftError(f"{what} ({str(error)[:300]})") from None


def read_tokenizer(bundle: Bundle) -> Tokenizer:
    """The tokenizer; EdgeftError if its file is not as it was exported, no tokenizer, or beyond the limits."""
    return make_tokenizer(bundle.read("tokenizer.json", MAX_TOKENIZER), f"{bundle.folder}: its tokenizer.json")


def make_tokenizer(data: bytes, what: str) -> Tokenizer:
    """A tokenizer of the bytes of its file; EdgeftError otherwise."""
    if count_values(data) > MAX_VALUES:
        raise EdgeftError(f"{what} holds more than {MAX_VALUES:,} values; that is no tokenizer")
    with refusing(f"{what} cannot be read"):
        tokenizer = Tokenizer.from_buffer(data)
    for part in PARTS:
        state = json.loads(tokenizer_part(tokenizer, part))
        growth = _growth(state)
        if growth > MAX_GROWTH:
            raise EdgeftError(f"{what}: its {part} makes up to {growth:,} characters of one, at most "
                              f"{MAX_GROWTH} may be")
        added = _added(state)
        if added > MAX_ADDED:
            raise EdgeftError(f"{what}: its {part} puts {added:,} tokens around a text; at most {MAX_ADDED} may be")
    with refusing(f"{what} cannot be used"):  # what it names and does not hold is missed only at work
        for text in TRIALS:
            tokenizer.decode(tokenizer.encode(text).ids)
    tokenizer.no_padding()  # a length of padding would be put behind every prompt, and a truncation cut it
    tokenizer.no_truncation()
    return tokenizer


def tokenizer_part(tokenizer: Tokenizer, part: str) -> str:
    """One part of a tokenizer as JSON, without its vocabulary."""
    held = getattr(tokenizer, part)
    return held.__getstate__().decode() if held is not None else "null"


def _growth(state: Any) -> int:
    """How many characters the replacements in a part may make of one, all of them one after the other."""
    if isinstance(state, list):
        made = 1
        for item in state:
            made = min(made * _growth(item), 1 << 40)
        return made
    if not isinstance(state, dict):
        return 1
    inner = [_growth(value) for value in state.values() if isinstance(value, list | dict)]
    own = 1
    if state.get("type") in ("Replace", "Prepend", "Metaspace", "WordPiece", "CTC", "BPEDecoder"):
        written = (state.get(key) for key in ("content", "prepend", "replacement", "prefix", "suffix",
                                              "word_delimiter_token"))
        own = max([len(text) for text in written if isinstance(text, str)], default=1)
        pattern = state.get("pattern")
        if isinstance(pattern, dict) and isinstance(pattern.get("String"), str) and pattern["String"]:
            own = -(-own // len(pattern["String"]))
    for growth in inner:
        own = min(max(own, 1) * growth, 1 << 40)
    return max(own, 1)


def _added(state: Any) -> int:
    """How many tokens a post-processor's templates put around a text."""
    if isinstance(state, list):
        return sum(map(_added, state))
    if not isinstance(state, dict):
        return 0
    if state.get("type") == "TemplateProcessing":
        ids = {name: len(token.get("ids", [])) for name, token in (state.get("special_tokens") or {}).items()}
        return max(sum(ids.get(piece["SpecialToken"]["id"], 1) for piece in state.get(key) or []
                       if "SpecialToken" in piece) for key in ("single", "pair"))
    return sum(_added(value) for value in state.values() if isinstance(value, list | dict))
