"""Records of the starter's grammar: cards and JSON objects beside sentences that state the same, and registers."""

from __future__ import annotations

import json

from .phrase import Scene, counted, listing, number, plural, spoken_time, upper_first

# A record is a list of (field, slot, sentence); the first field opens the text, the others come in any number.
RECORDS = {
    "person": (
        ("name", "{A} {surname}", "[This is|Here comes|I know|We met|I wrote to] {A} {surname}."),
        ("job", "{job}", "[{Cap_heA} works as {a_job}|{Cap_heA} is {a_job}|{hisA_Cap} job is that of {a_job}]."),
        ("town", "{town}", "[{Cap_heA} lives in {town}|{Cap_heA} comes from {town}|{Cap_heA} is at home in {town}]."),
        ("age", "{#age}", "{Cap_heA} is {age_words} years old."),
        ("pet", "{petname}", "{Cap_heA} has {a_pet} called {petname}."),
        ("likes", "{hobby}", "[{Cap_heA} likes|{Cap_heA} loves|{Cap_heA} is fond of] {hobby}."),
        ("address", "{address}", "[You find {himA} at|{Cap_heA} lives at|Letters go to] {address}."),
        ("motto", "{saying}", "{Cap_heA} always says: \"{saying}\"."),
    ),
    "shop": (
        ("shop", "{surname}'s {shopkind}", "[Welcome to|We went to|Everybody likes] {surname}'s {shopkind}."),
        ("town", "{town}", "[It is in {town}|You find it in {town}|It stands in the middle of {town}]."),
        ("opens", "{#opens}", "[It opens at|The door opens at|You can come from] {opens_words}."),
        ("closes", "{#closes}", "[It closes at|It shuts at|The lights go out at] {closes_words}."),
        ("sells", "{food1}, {food2}", "[You can buy {food1} and {food2} there|It sells {food1} and {food2}]."),
        ("owner", "{A}", "[It belongs to {A}|The owner is {A}|{A} runs it]."),
        ("staff", "{#count}", "{count_words} people work there."),
        ("closed", "{day}", "[It is closed on {day}|On {day} nobody is there]."),
    ),
    "trip": (
        ("from", "{town1}", "[{A} starts in {town1}|The trip begins in {town1}|We leave {town1}]."),
        ("to", "{town2}", "[The way leads to {town2}|The goal is {town2}|It ends in {town2}]."),
        ("day", "{day}", "[It is on {day}|The day is {day}|Be ready on {day}]."),
        ("leaves", "{#opens}", "[The {vehicle} leaves at|The {vehicle} starts at] {opens_words}."),
        ("by", "{vehicle}", "[They take the {vehicle}|They go by {vehicle}]."),
        ("seats", "{#count}", "[There are {count_words} seats|{count_words} people can come along]."),
        ("guide", "{B}", "[{B} shows the way|{B} is the guide|The guide is called {B}]."),
        ("stops", "{town3}, {town4}", "It stops in {town3} and in {town4}."),
    ),
    "recipe": (
        ("dish", "{dish}", "[Today we cook {dish}|{A} makes {dish}|This is how to make {dish}]."),
        ("needs", "{food1}, {food2}, {food3}",
            "[Take {food1}, {food2} and {food3}|It needs {food1}, {food2} and {food3}]."),
        ("minutes", "{#minutes}", "[Cook it for|It takes|Leave it in the oven for] {minutes_words} minutes."),
        ("serves", "{#count}", "[It is enough for {count_words} people|It feeds {count_words}]."),
        ("by", "{A} {surname}", "[The recipe is from {A} {surname}|{A} {surname} wrote it down]."),
        ("heat", "{#heat}", "The oven must have {heat_words} degrees."),
    ),
    "song": (
        ("title", "{title}", "[I heard|We listened to|Everybody sings] \"{title}\"."),
        ("singer", "{A} {surname}", "[It is sung by|The singer is|You hear the voice of] {A} {surname}."),
        ("year", "{#year}", "It was written in {#year}."),
        ("about", "{topic}", "[It is about {topic}|The words are about {topic}]."),
        ("length", "{#minutes}", "It is {minutes_words} minutes long."),
        ("place", "{place}", "It was first heard in the {place} of {town}."),
    ),
    "thing": (
        ("thing", "{thing}", "[Somebody has lost {a_thing}|{A} sells {a_thing}|In the {place} stands {a_thing}]."),
        ("colour", "{colour}", "[It is {colour}|Its colour is {colour}|Somebody painted it {colour}]."),
        ("made_of", "{material}", "It is a {material} one."),
        ("price", "{#heat}", "[It costs {heat_words} crowns|The price is {heat_words} crowns]."),
        ("owner", "{B} {surname}", "[It belongs to {B} {surname}|{B} {surname} owns it]."),
        ("where", "{spot}", "[It is {spot}|You find it {spot}|Look {spot}]."),
        ("note", "{saying}", "[On it somebody wrote|A note says|The label says]: \"{saying}\"."),
    ),
}  # fmt: skip
SAYINGS = (
    "never trust {a_animal}", "be {trait} and {trait2}", "{food} is better than {food2}", "call me on {day}",
    "do not touch the {thing2}", "I will be at the {place2} on {day}", "bring the {thing2} to {B}",
    "the {animal} is {mood}", "every {job} needs {a_thing2}", "we are out of {food}", "I love {hobby}",
    "come to {town2} in {season}", "please buy {food}, {food2} and some {s_produce}", "the {thing2} is {spot2}",
    "{B} will be here at {clock}", "I am late because the {vehicle} is broken", "happy birthday from {B} and {C}",
    "can you pick me up from the {place2}", "I left my {thing2} at the {place2}",
    "do you want to go to the {place2} with me",
    "keep the {thing2} {spot2}", "my {relation} likes {topic}", "see you at {clock}",
)  # fmt: skip


def _numbers(scene: Scene) -> None:
    """Draw the numeric slots: digits for the record, words for the sentence."""
    rng = scene.rng
    joint = rng.choice(("-", " "))
    for slot, low, high in (("age", 5, 99), ("count", 2, 60), ("minutes", 2, 99), ("heat", 10, 400)):
        value = rng.randrange(low, high)
        if slot == "heat" and rng.random() < 0.5:
            value = value // 10 * 10
        scene[f"#{slot}"], scene[f"{slot}_words"] = value, number(value, joint)
    scene["#year"] = rng.randrange(1800, 2025)
    for slot, first, part in (("opens", 5, "in the morning"), ("closes", 13, "in the afternoon")):
        hour = rng.randrange(first, first + (7 if slot == "opens" else 10))
        minute = rng.choice((0, 0, 15, 30, 30, 45, rng.randrange(0, 60, 5), rng.randrange(60)))
        part = "in the evening" if hour > 17 else part
        scene[f"#{slot}"] = f"{hour:02d}:{minute:02d}"
        scene[f"{slot}_words"] = f"{spoken_time(rng, hour, minute)} {part}"
    scene["saying"] = scene.say(rng.choice(SAYINGS))


def record(scene: Scene) -> str:
    """A card or a JSON object, and sentences with the same content; either may come first."""
    rng = scene.rng
    kind = rng.choice(tuple(RECORDS))
    _numbers(scene)
    first, *rest = RECORDS[kind]
    rest = rng.sample(rest, rng.randrange(1, min(6, len(rest)) + 1))
    fields: dict[str, object] = {}
    sentences = []
    for name, slot, sentence in (first, *rest):
        sentences.append(upper_first(scene.say(sentence)))
        value = scene[slot[1:-1]] if slot.startswith("{#") else scene.say(slot)
        listed = "," in slot and not slot.startswith("{#")
        fields[name] = value.split(", ") if listed and isinstance(value, str) else value
    if rng.random() < 0.4:
        shuffled = sentences[1:]
        rng.shuffle(shuffled)
        sentences = [sentences[0], *shuffled]
    written = _written(rng.random(), kind, fields)
    parts = [" ".join(sentences), written]
    if rng.random() < 0.25:
        parts.reverse()
    return "\n".join(parts)


def _written(roll: float, kind: str, fields: dict[str, object]) -> str:
    """A record as JSON (two times in three) or as a card."""
    if roll < 0.65:
        return json.dumps({"kind": kind, **fields} if roll < 0.4 else fields, ensure_ascii=False)
    rows = (f"{key}: {', '.join(value) if isinstance(value, list) else value}" for key, value in fields.items())
    return "\n".join(rows)


def register(scene: Scene) -> str:
    """Several entries of one form, then questions that look one of them up."""
    rng = scene.rng
    row, ask, back = rng.choice(
        (
            ("Room {k}: {v}.", "Who is in room {k}?", "Which room is {v} in?"),
            ("{v} sits on chair {k}.", "Who sits on chair {k}?", "On which chair does {v} sit?"),
            ("Table {k} ordered {w}.", "What did table {k} order?", "Which table ordered {w}?"),
            ("{v} has the {t}.", "What does {v} have?", "Who has the {t}?"),
            ("The {t} is {s}.", "Where is the {t}?", "What is {s}?"),
            ("{v} lives in {u}.", "Where does {v} live?", "Who lives in {u}?"),
            ("{v} likes {h}.", "What does {v} like?", "Who likes {h}?"),
            ('{v} said "{q}"', "What did {v} say?", 'Who said "{q}"?'),
        )
    )
    rows, numbers = [], rng.sample(range(1, 100), 5)
    for i in range(rng.randrange(2, 6)):
        rows.append({
            "k": str(numbers[i]), "v": scene[f"name{i}"], "w": scene[f"dish{i}"], "t": scene[f"thing{i}"],
            "s": scene[f"spot{i}"], "u": scene[f"town{i}"], "h": scene[f"hobby{i}"], "q": scene[f"title{i}"],
        })  # fmt: skip
    used = [key for key in "kvwtsuhq" if f"{{{key}}}" in row]
    lines = [row.format(**entry) for entry in rows]
    for _ in range(rng.randrange(1, 4)):
        entry = rng.choice(rows)
        question = rng.choice((ask, back))
        missing = next(key for key in used if f"{{{key}}}" not in question)
        answer = ("the " if missing == "t" else "") + entry[missing]
        lines.append(f"{question.format(**entry)} {upper_first(answer)}.")
    return rng.choice((" ", "\n")).join(lines)


def numerals(scene: Scene) -> str:
    """Numbers and times in words beside their digits."""
    rng, rows = scene.rng, []
    joint, clock = rng.choice(("-", " ")), rng.random() < 0.5
    for i in range(rng.randrange(3, 8)):
        if clock:
            hour, minute = rng.randrange(24), rng.choice((0, 15, 30, 45, rng.randrange(0, 60, 5), rng.randrange(60)))
            later = "in the afternoon" if hour < 18 else "in the evening"
            part = rng.choice(("am", "at night" if hour < 5 else "in the morning") if hour < 12 else ("pm", later))
            said, digits = f"{spoken_time(rng, hour, minute)} {part}", f"{hour:02d}:{minute:02d}"
        else:
            value = rng.randrange(100) if rng.random() < 0.7 else rng.randrange(1000)
            said, digits = f"{number(value, joint)} {scene['s_thing']}", f"{value} {scene['s_thing']}"
        name = scene[f"name{i}"]
        rows.append(f"{name}: {said} = {digits}")
    return "\n".join(rows)


def bill(scene: Scene) -> str:
    """An order of several counted goods in words, then as a list of quantities."""
    rng = scene.rng
    wanted = [(rng.randrange(1, 25), scene[f"produce{i}"]) for i in range(rng.randrange(1, 5))]
    said = scene.say("{A} [orders|buys|wants|sells|takes] ") + listing([counted(n, noun) for n, noun in wanted]) + "."
    roll = rng.random()
    if roll < 0.5:
        return _basket(scene, wanted)
    if roll < 0.75:
        return said + "\n" + json.dumps({"buyer": scene["A"], "goods": [{"what": noun, "n": n} for n, noun in wanted]})
    return said + "\n" + "\n".join(f"{n} x {noun}" for n, noun in wanted)


def _basket(scene: Scene, wanted: list[tuple[int, str]]) -> str:
    """Goods with a number or without one, in words, then as a JSON list with digits."""
    rng = scene.rng
    said, written = [], []
    for i, (n, noun) in enumerate(wanted):
        if rng.random() < 0.5:
            said.append(counted(n, noun, rng.choice("- ")))
            written.append(f"{n} {noun if n == 1 else plural(noun)}")
        else:
            written.append(scene[f"food{i}"])
            said.append(rng.choice(("", "some ")) + written[-1])
    joint = rng.choice((", ", " "))
    row = joint.join(said[:-1]) + (" and " if said[1:] else "") + said[-1]
    return scene.say(f"In the basket of {{A}} there is {row}.\n") + json.dumps({"basket": written})
