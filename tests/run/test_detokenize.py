"""Tokens to text piece by piece: whole characters only, whatever bytes a model writes."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models

from edgeft.run.detokenize import Detokenizer

WORDS = ["<unk>", "\u2581cat", "\u2581sat", "s", "iastic"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A decoder with byte fallback, as llama's and the stories models' are: any byte is a token."""
    vocabulary = {word: index for index, word in enumerate([*WORDS, *(f"<0x{byte:02X}>" for byte in range(256))])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    return made


def bytes_of(tokenizer: Tokenizer, raw: bytes) -> list[int]:
    return [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in raw]


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    decoder = Detokenizer(tokenizer)
    return [*(decoder.step(token) for token in ids), decoder.flush()]


def test_the_pieces_are_the_text(tokenizer: Tokenizer) -> None:
    ids = [1, 3, 2, *bytes_of(tokenizer, " caf\u00e9 \U0001f600".encode()), 3]
    found = pieces(tokenizer, ids)
    assert "".join(found) == tokenizer.decode(ids) == "cats sat caf\u00e9 \U0001f600s"
    assert found[:3] == ["cat", "s", " sat"]


def test_a_character_waits_for_its_last_byte(tokenizer: Tokenizer) -> None:
    found = pieces(tokenizer, [1, *bytes_of(tokenizer, "\u00e9".encode())])
    assert found == ["cat", "", "\u00e9", ""]


def test_bytes_that_make_no_character_do_not_end_the_answer(tokenizer: Tokenizer) -> None:
    """tokenizers' own DecodeStream raises here."""
    from tokenizers.decoders import DecodeStream

    ids = [1, *bytes_of(tokenizer, b"\xc3\xba\xc3"), 4, 2]
    text = "".join(pieces(tokenizer, ids))  # what was shown as a character stays one; only what follows is broken
    assert text.startswith("cat\u00fa\ufffd")
    assert text.endswith("iastic sat")
    stream = DecodeStream(skip_special_tokens=True)
    with pytest.raises(Exception, match="Invalid prefix"):
        [stream.step(tokenizer, token) for token in ids]


def test_what_is_held_back_comes_at_the_end_and_not_much_is_held(tokenizer: Tokenizer) -> None:
    assert "".join(pieces(tokenizer, [1, *bytes_of(tokenizer, b"\xc3")])) == "cat\ufffd"
    held = pieces(tokenizer, [1, *bytes_of(tokenizer, b"\xc3" * 30)])
    assert sum(map(bool, held[:-1])) >= 3
