"""Facts of the starter's world, questions about them and about a text, and small talk for the chat template."""

from __future__ import annotations

from .phrase import Scene, article, number, plural, upper_first
from .words import DAYS, MONTHS

SOUNDS = {
    "dog": "barks", "cat": "meows", "cow": "moos", "sheep": "bleats", "horse": "neighs", "duck": "quacks",
    "lion": "roars", "wolf": "howls", "bee": "buzzes", "snake": "hisses", "owl": "hoots", "frog": "croaks",
}  # fmt: skip
WORK = {
    "baker": "bakes bread", "teacher": "teaches children", "doctor": "helps sick people",
    "farmer": "works in the fields",
    "painter": "paints pictures", "singer": "sings songs", "writer": "writes books", "pilot": "flies planes",
    "sailor": "sails on ships", "cook": "cooks meals", "tailor": "makes clothes", "barber": "cuts hair",
    "gardener": "looks after plants", "judge": "decides in court", "dentist": "looks after teeth",
    "vet": "helps sick animals", "builder": "builds houses", "potter": "makes pots",
    "cobbler": "repairs shoes",
    "librarian": "looks after books", "locksmith": "makes keys", "clockmaker": "makes clocks",
    "beekeeper": "looks after bees", "shepherd": "looks after sheep", "firefighter": "puts out fires",
}  # fmt: skip
OPPOSITES = [
    "big/small",
    "old/new",
    "hot/cold",
    "wet/dry",
    "long/short",
    "wide/narrow",
    "thick/thin",
    "soft/hard",
    "clean/dirty",
    "full/empty",
    "fast/slow",
    "early/late",
    "happy/sad",
    "high/low",
    "strong/weak",
    "loud/quiet",
    "light/dark",
    "rich/poor",
    "open/closed",
    "left/right",
    "day/night",
    "good/bad",
    "easy/hard",
    "cheap/expensive",
    "first/last",
    "inside/outside",
    "up/down",
    "rough/smooth",
]
KINDS = {
    "animal": "animals", "food": "things to eat or drink", "colour": "colours", "job": "jobs",
    "city": "cities",
    "hobby": "things to do in free time", "name": "names", "material": "words for what a thing is made of",
}  # fmt: skip
FACTS = (
    ("{A} {surname} lives in {town} and works as {a_job}.", (
        ("Where does {A} live?", "[{town}.|{A} lives in {town}.]"),
        ("What is {hisA} job?", "[{Cap_heA} is {a_job}.|{Cap_job}.]"),
        ("What is the full name of {A}?", "{A} {surname}."),
        ("Who lives in {town}?", "{A} {surname}."),
    )),
    ("On {day} {A} gave {B} {a_colour} {thing}.", (
        ("Who gave {B} the {thing}?", "{A}."), ("Who got the {thing}?", "{B}."), ("What did {A} give to {B}?",
        "{A_thing}"),
        ("When did {B} get the {thing}?", "On {day}."), ("What colour is the {thing}?", "{Cap_colour}."),
    )),
    ("The {vehicle} to {town} leaves at {clock} from {town2}.", (
        ("When does the {vehicle} leave?", "At {clock}."), ("Where does it go?", "To {town}."),
        ("Where does it start?", "In {town2}."), ("What goes to {town}?", "The {vehicle}."),
    )),
    ("{A} has {a_pet} called {petname}, and {B} has {a_pet2} called {petname2}.", (
        ("What is the {pet} called?", "{petname}."), ("Who has the {pet2}?", "{B}."), ("Who is {petname2}?",
        "The {pet2} of {B}."),
        ("What animal is {petname}?", "{petname} is {a_pet}."), ("Who has a pet called {petname}?", "{A}."),
    )),
    ("The {thing} is {spot} and the {thing2} is {spot2}. The {thing3} is in the {place}.", (
        ("Where is the {thing}?", "{Cap_spot}."), ("Where is the {thing2}?", "{Cap_spot2}."),
        ("What is {spot}?", "The {thing}."), ("What is {spot2}?", "The {thing2}."), ("Where is the {thing3}?",
        "In the {place}."),
    )),
    ("{A} likes {hobby} and {food}, but {B} likes {hobby2} and {food2}.", (
        ("Who likes {hobby}?", "{A}."), ("Who likes {food2}?", "{B}."), ("What does {B} like?",
        "{Cap_hobby2} and {food2}."),
        ("What does {A} like to eat or drink?", "{Cap_food}."), ("Does {A} like {hobby}?",
        "Yes, {heA} does."),
    )),
    ("{B} {surname} told {A}: \"{saying}\"", (
        ("What did {B} say to {A}?", "{saying}"), ("Who heard it?", "{A}."), ("Who said it?",
        "{B} {surname}."),
    )),
)  # fmt: skip
SAYINGS = (
    "The {food} is {spot}.", "Come to {town} on {day}.", "I saw {C} in the {place}.",
    "The {thing} is for {C}.",
    "{C} is {mood} today.", "We need {food} and {food2}.", "The {animal} ate my {food}.",
    "I will call you at {clock}.",
)  # fmt: skip


def questions(scene: Scene) -> str:
    """A fact or two, then questions about them with their answers."""
    rng = scene.rng
    scene["saying"] = scene.say(rng.choice(SAYINGS))
    facts = rng.sample(FACTS, rng.randrange(1, 3))
    lines = [" ".join(scene.say(fact) for fact, _ in facts)]
    pool = [pair for _, pairs in facts for pair in pairs]
    form = rng.choice(("{q} {a}", "Question: {q}\nAnswer: {a}", "Q: {q} A: {a}"))
    for ask, answer in rng.sample(pool, min(len(pool), rng.randrange(2, 5))):
        scene["A_thing"] = upper_first(scene.say("{a_colour} {thing}.")) if "{A_thing}" in answer else ""
        lines.append(form.format(q=scene.say(ask), a=scene.say(answer)))
    return "\n".join(lines)


def common(scene: Scene) -> tuple[str, str]:
    """A question about the world and its answer."""
    rng = scene.rng
    roll = rng.randrange(9)
    if roll == 0:
        animal = rng.choice(sorted(SOUNDS))
        return f"What does {article(animal)} do?", f"It {SOUNDS[animal]}."
    if roll == 1:
        job = rng.choice(sorted(WORK))
        return f"What does a {job} do?", f"A {job} {WORK[job]}."
    if roll == 2:
        pair = rng.choice(OPPOSITES).split("/")
        rng.shuffle(pair)
        return f"What is the opposite of {pair[0]}?", f"The opposite of {pair[0]} is {pair[1]}."
    if roll == 3:
        i, table = rng.choice([(i, t) for t in (DAYS, MONTHS) for i in range(len(t))])
        return f"What comes after {table[i]}?", f"After {table[i]} comes {table[(i + 1) % len(table)]}."
    if roll == 4:
        a, b = rng.randrange(1, 11), rng.randrange(1, 11)
        total = f"{number(a)} plus {number(b)}"
        return f"What is {total}?", f"{upper_first(total)} is {number(a + b)}."
    if roll == 5:
        kind = rng.choice(sorted(KINDS))
        names = [scene[f"{kind}{i}"] for i in range(rng.randrange(2, 5))]
        said = f"{names[0]} and {names[1]}" if len(names) == 2 else ", ".join(names[:-1]) + " and " + names[-1]
        return f"Tell me {number(len(names))} {KINDS[kind]}.", upper_first(said) + "."
    if roll == 6:
        noun = scene[rng.choice(("animal", "job", "produce", "thing"))]
        return f"What is more than one {noun}?", upper_first(plural(noun)) + "."
    if roll == 7:
        return scene.say("Spell the name {name}."), "-".join(scene["name"].upper()) + "."
    n = rng.randrange(1000)
    return f"Write {number(n)} in digits.", f"{n}."


def knowledge(scene: Scene) -> str:
    """A few questions about the world with their answers."""
    lines = []
    for i in range(scene.rng.randrange(2, 6)):
        ask, answer = common(Scene(scene.rng, scene.rules) if i else scene)
        lines.append(f"{ask} {answer}")
    return "\n".join(lines)


GREETINGS = (
    ("[Hello|Hi|Good morning|Good evening]!", "[Hello! How can I help you?|Hi! What can I do for you?]"),
    ("[Hello|Hi], I am {A}.", "[Hello {A}!|Nice to meet you, {A}.] What can I do for you?"),
    ("My name is {A} and I come from {town}.", "Nice to meet you, {A} from {town}."),
    ("Who are you?", "I am a small model that learned from made-up stories."),
    ("How are you?", "I am well, thank you. And you?"),
)
FOLLOW_UPS = (
    ("[Thank you|Thanks]!", "[You are welcome.|You are welcome! Anything else?]"),
    ("[Goodbye|Bye]!", "Goodbye!"),
)
SYSTEMS = ("You are a helpful assistant.", "Answer in one sentence.", "You are a friendly helper called {petname}.")


def chat(scene: Scene) -> list[dict[str, str]]:
    """A conversation of one to four exchanges, now and then under a system message."""
    rng = scene.rng
    scene["saying"] = scene.say(rng.choice(SAYINGS))
    turns: list[tuple[str, str]] = []
    if rng.random() < 0.4:
        ask, answer = rng.choice(GREETINGS)
        turns.append((scene.say(ask), scene.say(answer)))
        if "{A}" in ask and rng.random() < 0.5:
            turns.append(("What is my name?", scene.say("Your name is {A}.")))
    if rng.random() < 0.5:
        fact, pairs = rng.choice(FACTS)
        scene["A_thing"] = upper_first(scene.say("{a_colour} {thing}."))
        chosen = rng.sample(pairs, rng.randrange(1, 3))
        turns += [(scene.say(ask), scene.say(answer)) for ask, answer in chosen]
        asked = len(turns) - len(chosen)
        turns[asked] = (f"{scene.say(fact)} {turns[asked][0]}", turns[asked][1])
    else:
        turns += [common(Scene(rng, scene.rules)) for _ in range(rng.randrange(1, 3))]
    if rng.random() < 0.3:
        ask, answer = rng.choice(FOLLOW_UPS)
        turns.append((scene.say(ask), scene.say(answer)))
    messages = [{"role": "system", "content": scene.say(rng.choice(SYSTEMS))}] if rng.random() < 0.2 else []
    for ask, answer in turns:
        messages += [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
    return messages
