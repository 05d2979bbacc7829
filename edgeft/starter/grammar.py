"""The starter's pre-training text: which kinds there are, how a slot is drawn, and which combinations are held out.

A text's key is its kind with the first values that it drew (as a rule who acts and on what). Keys are hashed: one in
thirty is `valid`, so a combination that `valid` shows was never in `train`, though each of its words was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from . import facts, records, stories, words
from .phrase import Scene, number, spoken_time

HELD_OUT = 30
KINDS: tuple[tuple[Callable[[Scene], str], int], ...] = (
    (stories.story, 14), (stories.description, 6), (stories.dialogue, 8), (stories.letter, 7),
    (stories.counting, 4),
    (stories.enumeration, 6),
    (stories.dictation, 16), (records.record, 30), (records.register, 10), (records.numerals, 12),
    (records.bill, 10),
    (facts.questions, 14), (facts.knowledge, 4),
)  # fmt: skip


def _pick(*lists: tuple[str, ...]) -> Callable[[Random], str]:
    """A rule that draws from one of the lists."""
    return lambda rng: rng.choice(rng.choice(lists))


def _compound(heads: tuple[str, ...], tails: tuple[str, ...]) -> Callable[[Random], str]:
    """A rule that invents a proper name from a head and a tail."""

    def draw(rng: Random) -> str:
        head, tail = rng.choice(heads), rng.choice(tails)
        return draw(rng) if head.lower() == tail or head[-1] == tail[0] else head + tail

    return draw


_surname = _compound(words.SURNAME_HEADS, words.SURNAME_TAILS)
_town = _compound(words.TOWN_HEADS, words.TOWN_TAILS)


def _clock(rng: Random) -> str:
    """A time of day in words, or in digits."""
    hour, minute = rng.randrange(1, 13), rng.randrange(0, 60, 5)
    return spoken_time(rng, hour, minute) if rng.random() < 0.7 else f"{hour:02d}:{minute:02d}"


def _title(rng: Random) -> str:
    """The title of a song or a book."""
    first, second, third = (rng.choice(titles) for titles in (words.TITLE_A, words.TITLE_B, words.TITLE_B))
    return rng.choice((f"{first} {second}", f"The {first} {second}", f"{second} of {third}", second))


RULES: dict[str, Callable[[Random], str]] = {
    "name": _pick(words.GIRLS, words.BOYS), "surname": _surname,
    "town": lambda r: _town(r) if r.random() < 0.7 else
    r.choice(words.CITIES), "city": _pick(words.CITIES), "job": _pick(words.JOBS),
    "animal": _pick(words.ANIMALS),
    "pet": _pick(words.PETS), "petname": _pick(words.PET_NAMES), "food": _pick(words.FOODS),
    "dish": _pick(words.DISHES),
    "produce": _pick(words.PRODUCE), "thing": _pick(words.THINGS), "material": _pick(words.MATERIALS),
    "colour": _pick(words.COLOURS), "look": _pick(words.LOOKS), "mood": _pick(words.MOODS),
    "trait": _pick(words.TRAITS),
    "place": _pick(words.PLACES), "spot": _pick(words.SPOTS), "hobby": _pick(words.HOBBIES, words.SUBJECTS),
    "weather": _pick(words.WEATHER), "day": _pick(words.DAYS), "month": _pick(words.MONTHS),
    "season": _pick(words.SEASONS), "relation": _pick(words.RELATIONS), "vehicle": _pick(words.VEHICLES),
    "topic": _pick(words.TOPICS), "shopkind": _pick(words.SHOP_KINDS), "adverb": _pick(words.ADVERBS),
    "store": _pick(words.STORES), "glad": _pick(words.GLAD), "low": _pick(words.LOW),
    "did": lambda r: r.choice(words.DID)[1], "some": lambda r: number(r.randrange(2, 13)), "clock": _clock,
    "title": _title, "address": lambda r: f"{r.randrange(1, 200)} {_surname(r)} {r.choice(words.STREETS)}",
}  # fmt: skip


def scene(rng: Random) -> Scene:
    """A scene with three people A, B and C of different names, and their pronouns."""
    given: dict[str, Any] = {}
    for person in "ABC":
        girl = rng.random() < 0.5
        name = rng.choice(words.GIRLS if girl else words.BOYS)
        while name in given.values():
            name = rng.choice(words.GIRLS if girl else words.BOYS)
        he, him, his = ("she", "her", "her") if girl else ("he", "him", "his")
        given |= {person: name, f"he{person}": he, f"him{person}": him, f"his{person}": his}
        given[f"his{person}_Cap"] = his.capitalize()
    return Scene(rng, RULES, **given)


def split_of(key: tuple[str, ...]) -> str:
    """`valid` for one key in thirty, else `train`."""
    digest = hashlib.sha256("\0".join(key).encode()).digest()
    return "valid" if int.from_bytes(digest[:4], "big") % HELD_OUT == 0 else "train"


def _salient(kind: str, drawn: Scene, given: int) -> tuple[str, ...]:
    """What identifies a text's combination: its kind, its first person and the first value that it drew."""
    values = [str(value) for key, value in drawn.items() if key[0] != "#"][given : given + 1]
    return (kind, drawn["A"], *values)


def texts(seed: int, split: str = "train") -> Iterator[str]:
    """Endless texts of one split, the same for the same seed."""
    rng = Random(f"texts {seed} {split}")
    kinds, weights = zip(*KINDS, strict=True)
    while True:
        kind = rng.choices(kinds, weights)[0]
        drawn = scene(rng)
        given = len(drawn)
        text = kind(drawn)
        if split_of(_salient(kind.__name__, drawn, given)) == split:
            yield text


def chats(seed: int, split: str = "train") -> Iterator[list[dict[str, str]]]:
    """Endless conversations (lists of messages) of one split."""
    rng = Random(f"chats {seed} {split}")
    while True:
        drawn = scene(rng)
        given = len(drawn)
        messages = facts.chat(drawn)
        if split_of(_salient("chat", drawn, given)) == split:
            yield messages
