"""Turn written templates into text: `[one|other]` picks, `{slot}` draws a value once and repeats it."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_PLURALS = {
    "sheep": "sheep", "deer": "deer", "goose": "geese", "mouse": "mice", "wolf": "wolves", "calf": "calves",
    "knife": "knives", "fish": "fish", "fisherman": "fishermen", "postman": "postmen", "ferryman": "ferrymen",
}  # fmt: skip


def choose(rng: Random, template: str) -> str:
    """Resolve every `[a|b|c]`, innermost first."""
    while found := _CHOICE.search(template):
        options = found.group(1).split("|")
        template = template[: found.start()] + options[rng.randrange(len(options))] + template[found.end() :]
    return template


def number(n: int, joint: str = "-") -> str:
    """0 to 999 in words; `joint` stands between tens and units."""
    if n < 20:
        return _UNITS[n]
    if n < 100:
        return _TENS[n // 10] + (joint + _UNITS[n % 10] if n % 10 else "")
    return f"{_UNITS[n // 100]} hundred" + (f" and {number(n % 100, joint)}" if n % 100 else "")


def article(noun: str) -> str:
    """`noun` with its indefinite article."""
    return ("an " if noun[0].lower() in "aeiou" and not noun.startswith(("uni", "one", "eu")) else "a ") + noun


def plural(noun: str) -> str:
    """The plural of `noun` by the rules of spelling, and by a short list of exceptions."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    if noun.endswith(("s", "sh", "ch", "x")):
        return noun + "es"
    return noun + ("es" if noun.endswith(("potato", "tomato", "mango")) else "s")


def counted(n: int, noun: str, joint: str = "-") -> str:
    """`three pears`, `one pear`."""
    return f"{number(n, joint)} {noun if n == 1 else plural(noun)}"


def listing(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def upper_first(text: str) -> str:
    """The text with a capital in front."""
    return text[:1].upper() + text[1:]


def spoken_time(rng: Random, hour: int, minute: int) -> str:
    """One way of saying a clock time on the twelve-hour dial, without the part of the day."""
    this, following = number((hour - 1) % 12 + 1), number(hour % 12 + 1)
    if minute == 0:
        return choose(rng, f"[{this}|{this} o'clock]")
    if minute == 30 and rng.random() < 0.6:
        return f"half past {this}"
    if minute == 15 and rng.random() < 0.6:
        return f"quarter past {this}"
    if minute == 45 and rng.random() < 0.6:
        return f"quarter to {following}"
    if minute in (5, 10, 20, 25) and rng.random() < 0.5:
        return f"{number(minute, ' ')} past {this}"
    if minute in (35, 40, 50, 55) and rng.random() < 0.5:
        return f"{number(60 - minute, ' ')} to {following}"
    return f"{this} {'oh ' if minute < 10 else ''}{number(minute, ' ')}"


class Scene(dict[str, Any]):
    """Slot values of one text: a slot that was not set is drawn by the rule named like it, digits ignored."""

    def __init__(self, rng: Random, rules: dict[str, Callable[[Random], str]], **given: Any) -> None:
        super().__init__(given)
        self.rng, self.rules = rng, rules

    def __missing__(self, slot: str) -> str:
        """Draw a slot's value: distinct from its siblings (`food1`, `food2`); `a_x`, `X_s` and `Cap_x` derive."""
        for prefix, change in (("Cap_", upper_first), ("a_", article), ("s_", plural)):
            if slot.startswith(prefix):
                return change(self[slot[len(prefix) :]])
        kind = slot.rstrip("0123456789")
        taken = {value for key, value in self.items() if key.rstrip("0123456789") == kind}
        value = self.rules[kind](self.rng)
        while value in taken:
            value = self.rules[kind](self.rng)
        self[slot] = value
        return value

    def say(self, template: str) -> str:
        """Fill a template; the same slot gives the same value for the life of the scene."""
        return choose(self.rng, template).format_map(self)
