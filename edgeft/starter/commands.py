"""The sample task: a spoken request to a home and phone assistant becomes one JSON command.

Fourteen intents, open slots copied from the request (names, places, titles, messages, items) and closed ones brought
into one form (times, numbers, days, rooms). None of these phrases is in the pre-training text.

What is held out: a line's completion, that is its intent with all slot values, is hashed, and one in eight belongs to
the test. So no completion of the test was ever trained on, in whatever phrasing; no prompt occurs twice anywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from random import Random
from typing import Any

from .command_phrases import EVENTS, FILLERS, FORMS, LABELS, MESSAGES, ORDERS, PARTS, ROOMS, TASKS
from .grammar import RULES, scene
from .phrase import Scene, choose, number, plural, spoken_time
from .words import DAYS, FOODS, MATERIALS, PRODUCE, THINGS

TRAIN_LINES = 12000
TEST_LINES = 300
HELD_OUT = 8


def _artist(rng: Random) -> str:
    """A singer, or a band such as the Velvet Lanterns."""
    if rng.random() < 0.5:
        return f"{RULES['name'](rng)} {RULES['surname'](rng)}"
    return f"the {rng.choice(MATERIALS).capitalize()} {plural(rng.choice(THINGS).split()[-1]).capitalize()}"


def _person(rng: Random) -> str:
    """Somebody to call or to write to: a first name, or a full one."""
    name, surname = RULES["name"](rng), RULES["surname"](rng)
    return rng.choice((name, name, f"{name} {surname}"))


def _item(rng: Random) -> str:
    """Something to buy, without a number."""
    return rng.choice((rng.choice(FOODS), plural(rng.choice(PRODUCE)), rng.choice(FOODS)))


RULES_HERE: dict[str, Callable[[Random], str]] = {
    **RULES,
    "artist": _artist,
    "item": _item,
    "room": lambda rng: rng.choice(ROOMS),
    "label": lambda rng: rng.choice(LABELS),
    "event": lambda rng: rng.choice(EVENTS),
    "tint": lambda rng: rng.choice(("red", "blue", "green", "yellow", "purple", "orange", "pink",
    "warm white", "cold white")),
    "person": _person,
    "goal": lambda rng: rng.choice((RULES["town"](rng), f"the {RULES['place'](rng)}", RULES["address"](rng))),
}  # fmt: skip


def _pair(drawn: Scene, slot: str, said: Any, value: Any) -> None:
    """Set what is said and what is written for it (`{slot}` and `#slot`)."""
    drawn[slot], drawn[f"#{slot}"] = said, value


def _time(drawn: Scene) -> None:
    """A clock time as people say it; `6:30 am` in the command, without am or pm where no part of the day is said."""
    rng = drawn.rng
    if rng.random() < 0.05:
        return _pair(drawn, "time", *rng.choice((("noon", "12:00 pm"), ("midnight", "12:00 am"))))
    minute = rng.choice((0, 0, 30, 15, 45, rng.randrange(0, 60, 5), rng.randrange(60)))
    hour = rng.randrange(24)
    said = spoken_time(rng, hour, minute)
    parts = next(parts for until, parts in PARTS if hour < until)
    part = rng.choice(("", *parts))
    half = f" {'am' if hour < 12 else 'pm'}" if part else ""
    if part in ("am", "pm"):
        said = said.replace(" o'clock", "")
    return _pair(drawn, "time", f"{said} {part}".strip(), f"{(hour - 1) % 12 + 1}:{minute:02d}{half}")


def _date(drawn: Scene) -> None:
    """A day: today, tomorrow or a weekday, without what stands before it."""
    day = drawn.rng.choice(("today", "tomorrow", "tomorrow", *DAYS))
    said = day if day[0] == "t" else drawn.rng.choice((f"on {day}", f"next {day}", f"this {day}"))
    _pair(drawn, "date", said, day)


def _numbers(drawn: Scene) -> None:
    """Durations, degrees and percentages."""
    rng = drawn.rng
    minutes, seconds, hours = rng.randrange(2, 100), rng.randrange(10, 100), rng.randrange(2, 13)
    _pair(drawn, "minutes", number(minutes, " "), minutes)
    _pair(drawn, "seconds", number(seconds, " "), seconds)
    _pair(drawn, "hours", number(hours, " "), hours)
    degrees, half = rng.randrange(12, 31), rng.random() < 0.25
    _pair(drawn, "degrees", number(degrees, " ") + (" and a half" if half else ""), degrees + 0.5 if half else degrees)
    level = rng.randrange(1, 101)
    said = f"{number(level, ' ')} percent" if level < 100 else "one hundred percent"
    if rng.random() < 0.15:
        said, level = rng.choice((("half", 50), ("the maximum", 100), ("the minimum", 1), ("a quarter", 25)))
    _pair(drawn, "level", said, level)


def _goods(drawn: Scene) -> None:
    """One to four items, some with a number, said as a list without commas."""
    rng = drawn.rng
    said, wanted = [], []
    for i in range(rng.choice((1, 1, 2, 2, 3, 4))):
        count, noun = rng.randrange(2, 25), drawn[f"produce{i}"]
        if rng.random() < 0.4:
            said.append(f"{'a dozen' if count == 12 else number(count, ' ')} {plural(noun)}")
            wanted.append(f"{count} {plural(noun)}")
        else:
            wanted.append(drawn[f"item{i}"])
            said.append(choose(rng, "[|||some ]") + wanted[-1])
    joint = rng.choice((" ", ", ")) if len(said) > 2 else " "
    _pair(drawn, "goods", joint.join(said[:-1]) + (" and " if said[1:] else "") + said[-1], wanted)


def _scene(rng: Random) -> Scene:
    """A scene with every normalised slot set."""
    drawn = Scene(rng, RULES_HERE, **scene(rng))
    for fill in (_time, _date, _numbers, _goods):
        fill(drawn)
    for slot, templates in (("message", MESSAGES), ("task", TASKS)):
        drawn[slot] = drawn.say(rng.choice(templates))
    drawn["song"] = drawn["title"]
    drawn["person"] = RULES_HERE["person"](rng)
    drawn["goal"] = RULES_HERE["goal"](rng)
    return drawn


def _line(rng: Random) -> dict[str, str]:
    """One request and its command."""
    intents = sorted({intent for intent, _, _ in FORMS})
    intent = rng.choice(intents)
    _, fields, phrases = rng.choice([form for form in FORMS if form[0] == intent])
    drawn = _scene(rng)
    phrase = choose(rng, rng.choice(phrases))
    command: dict[str, Any] = {"intent": intent}
    for key, slot in fields:
        command[key] = drawn[slot[1:-1]] if slot.startswith("{#") else drawn.say(slot)
    before, after = FILLERS["order" if phrase.split()[0] in ORDERS else "other"]
    prompt = choose(rng, before) + phrase.format_map(drawn) + choose(rng, after)
    return {"prompt": prompt, "completion": json.dumps(command, ensure_ascii=False)}


def split_of(completion: str) -> str:
    """`test` for one completion in eight, else `train`."""
    digest = hashlib.sha256(completion.encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") % HELD_OUT == 0 else "train"


def dataset(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and test lines: no prompt twice, no completion on both sides, none twice in the test."""
    rng = Random(f"commands {seed}")
    lines: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    seen: set[str] = set()
    while len(lines["train"]) < TRAIN_LINES or len(lines["test"]) < TEST_LINES:
        line = _line(rng)
        split = split_of(line["completion"])
        full = len(lines[split]) >= (TRAIN_LINES if split == "train" else TEST_LINES)
        if full or line["prompt"] in seen or (split == "test" and line["completion"] in seen):
            continue
        seen |= {line["prompt"], line["completion"]}
        lines[split].append(line)
    return lines["train"], lines["test"]
