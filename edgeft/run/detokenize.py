"""Text of tokens as they come; bytes that are not yet a whole character are held back."""

from __future__ import annotations

from tokenizers import Tokenizer

from .tokenizer import refusing

HELD = 8  # tokens: no character has more bytes than 4, so what is broken for longer stays broken
BROKEN = "\ufffd"


class Detokenizer:
    """One answer's tokens to text; not tokenizers' DecodeStream, which raises on bytes that make no character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._before = 0  # characters of the text up to what was read
        self._start = self._read = 0  # decoding starts a little before what is new: a token's text depends on the last

    def step(self, token: int) -> str:
        """Take a token in; the text that is now certain."""
        self._ids.append(token)
        return self._new(whole=len(self._ids) - self._read > HELD)

    def flush(self) -> str:
        """What is still held back, broken or not."""
        return self._new(whole=True)

    def _new(self, *, whole: bool) -> str:
        after = self._text(len(self._ids))
        if (not whole and after.endswith(BROKEN)) or len(after) <= self._before:
            return ""
        new = after[self._before :]
        self._start, self._read = self._read, len(self._ids)
        self._before = len(self._text(self._read))
        return new

    def _text(self, end: int) -> str:
        with refusing("The tokenizer cannot decode this"):
            return self._tokenizer.decode(self._ids[self._start : end], skip_special_tokens=True)
