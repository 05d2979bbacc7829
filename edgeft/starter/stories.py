"""Running text of the starter's grammar: stories, descriptions, dialogues and letters, written as templates."""

from __future__ import annotations

import json

from .phrase import Scene, counted, listing, number, upper_first

OPENINGS = (
    "[One day|One morning|One evening|On {day}|Last {season}|On a {weather} day|It was a {weather} morning.]",
    "[In {town}|In a small house in {town}|Near {town}|Not far from {town}]",
)

# Each plot is cause and effect; A, B are people with their pronouns, the rest is drawn by name.
PLOTS = (
    "{A} [lost|could not find] {hisA} {look} {thing}. {Cap_heA} looked {spot1} and {spot2}, but the {thing} "
    "was not "
    'there. So {heA} asked {B}. "[I saw|I have seen] your {thing} {spot3}," said {B}. {A} looked {spot3} '
    "and found "
    "the {look} {thing}. {Cap_heA} was [very|so] happy and thanked {B}.",
    "{A} wanted to make {dish}, but there was no {food1} left. {Cap_heA} went to the {store} and bought "
    "{food1} and "
    "{food2}. Then {heA} cooked {dish} and shared it with {B}. {B} liked the {dish} [a lot|very much].",
    "{A} met {a_animal} near the {place}. The {animal} was hungry because it had not eaten. {A} gave it "
    "some {food}. "
    "The {animal} ate the {food} and followed {himA} home. [Now {A} and the {animal} are friends.|{B} "
    "laughed when "
    "{heB} saw the {animal}.]",
    "{A} broke the {look} {thing} of {hisA} {relation} {B}. {Cap_heA} was [sad|worried|afraid] because the "
    "{thing} was "
    "[old|rare|a gift]. {Cap_heA} took it to the {job} in {town}, and the {job} repaired it. When {A} gave "
    "the {thing} "
    'back, {B} said: "[Thank you|You are honest], {A}."',
    "{A} woke up late and missed the {vehicle} to {town}. So {heA} had to walk to the {place}, where {B} was "
    'waiting. "Why are you late, {A}?" asked {B}. "I missed the {vehicle}," said {A}. They went to '
    "{town} "
    "together the next {day}.",
    "{A} had {a_pet} called {petname}. Then {petname} ran away, because the door was open. {A} looked in "
    "the {place1} "
    "and in the {place2}. {B} found the {pet} {spot} and brought {petname} home. {A} gave {B} {a_thing} to "
    "say thank "
    "you.",
    "{A} got {a_material} {thing} from {hisA} {relation}. It was {look} and {colour}. {B} liked it so much "
    "that {A} let "
    "{himB} keep it for a [day|week]. {B} was careful with the {thing} and gave it back on {day}.",
    "{A} wanted to learn {hobby}, but it was [hard|not easy] at first. {hisA_Cap} {relation} {B} helped "
    "{himA} every "
    '{day}. After {some} weeks {A} was good at {hobby}, and {heA} felt {glad}. "[I am proud of you|Well '
    'done]," said '
    "{B}.",
    "it began to rain while {A} was at the {place1}. {Cap_heA} had no umbrella, so {heA} ran to the "
    "{place2} and got "
    "wet. The {job} there gave {himA} a towel and some hot {food}. Soon {A} was warm [again|and dry].",
    '{A} and {B} found {a_look} {thing} {spot}. "It is mine," said {A}. "No, I saw it first," said {B}. '
    "They asked "
    "the {job}, and the {job} said that the {thing} belonged to {C}. So {A} and {B} took the {thing} to "
    "{C}, who gave "
    "them [some {food}|a {material} {thing2}|{counted1}].",
    "{A} had {counted1} and {B} had {counted2}. {A} wanted {produce2} and {B} wanted {produce1}, so they "
    "[traded|made a "
    "trade]. Now {A} has the {s_produce2} and {B} has the {s_produce1}. Both are {glad}.",
    "the {job1} asked {A} to bring {a_thing} to the {job2} in {town}. On the way {A} {did} the {thing} "
    "{adverb}, and "
    "then {heA} [went|walked] on. The {job2} was {glad} and gave {himA} {some} coins. {A} spent the coins "
    "on {food}.",
    "{A} heard a [noise|strange sound] in the {place}. {Cap_heA} was afraid, but {heA} took a lamp and "
    "looked. It was "
    "only {a_animal} that had knocked over {a_thing}. {A} laughed and told {B} about the {animal}.",
    "{A} moved from {town1} to {town2}. {Cap_heA} knew nobody there and felt {low}. Then {heA} met {B}, the "
    "{job}, who "
    "[liked|loved] {hobby} too. Now {A} and {B} go to the {place} every {day}.",
    "{A} wrote a book about {topic}. Nobody in {town} wanted to read it. But {B} read the book and told "
    "{C}, and {C} "
    "told the {job}. Soon everybody in {town} talked about {topic}, and {A} was {glad}.",
    "{A} planted a seed near the {place}. It was dry, so {heA} watered it every {day}. In {season} a "
    "{colour} flower "
    "grew there. {B} saw the flower and drew it in {hisB} {look} notebook.",
)
DESCRIPTIONS = (
    "{A} {surname} is {a_job} in {town}. {Cap_heA} is {trait1} and {trait2}, and {heA} likes {hobby}. "
    "{Cap_heA} has "
    "{a_colour} {thing} and {a_pet} called {petname}. On {day} {heA} [goes|walks] to the {place}. {hisA_Cap} "
    "{relation} {B} lives in {town2}.",
    "The {place} of {town} is [old|small|quiet|famous]. There is {a_look} {thing} near the door, and "
    "{a_animal} sleeps "
    "{spot}. People come here in {season} to see the {colour} {s_thing2}. The {job} {A} looks after it.",
    "This is a {material} {thing}. It is {colour} and {look}. {A} {did} it in {town}, and now it stands "
    "{spot}. {B} says "
    "that the {thing} is [too {look2}|worth {some} coins|the best in {town}].",
    "The {animal} in the picture is {colour}. It stands in front of the {place}. Next to the {animal} one "
    "can see "
    "{a_job} with {a_look} {thing}. The {job} looks {mood}. The picture was painted by {A} {surname}.",
    "{town} lies between {town2} and {town3}. It has {a_place}, {a_place2} and {a_place3}. In {season} it is "
    "{weather} there, and in {season2} it is {weather2}. {A} {surname} is the mayor of {town}.",
)
DIALOGUES = (
    "{A}: [Hello|Hi|Good morning], {B}! Where are you going?\n{B}: I am going to the {store} to buy "
    "{food}.\n{A}: Can "
    "you bring me {a_thing}?\n{B}: [Yes, of course|Sure]. One {thing} for {A}.\n{A}: Thank you, {B}.",
    "{A}: Have you seen my {colour} {thing}?\n{B}: Your {colour} {thing}? It is {spot}.\n{A}: And my "
    "{thing2}?\n{B}: "
    "The {thing2} is {spot2}.\n{A}: So the {thing} is {spot} and the {thing2} is {spot2}. Thank you!",
    "{A}: What is your name?\n{B}: My name is {B} {surname}.\n{A}: How do you spell {surname}?\n{B}: "
    "{spelled}.\n{A}: "
    "Thank you. And what is your job, {B} {surname}?\n{B}: I am {a_job} in {town}.",
    '{A}: What did {C} say?\n{B}: {C} said: "{saying}"\n{A}: [What?|Sorry?|I did not hear you.]\n{B}: '
    '"{saying}" '
    "That is what {heC} said.",
    "{A}: I would like {counted1} and {counted2}, please.\n{B}: So {counted1} and {counted2}. Anything "
    "else?\n{A}: Yes, "
    "some {food}.\n{B}: Here you are: {counted1}, {counted2} and some {food}.",
    "{A}: When does the {vehicle} to {town} leave?\n{B}: The {vehicle} to {town} leaves at {clock}.\n{A}: "
    "At {clock}? "
    "And to {town2}?\n{B}: To {town2} it leaves at {clock2}.",
)
LETTERS = (
    "Dear {A},\n[thank you for|I liked] the {material} {thing}. It stands {spot} now. {saying} [Please come "
    "to|Come and "
    "see me in] {town} on {day}, and bring {B} and {hisB} {pet} {petname}.\n[Yours|Love|With best "
    "wishes],\n{C}",
    "Note for {A}: {saying} The {food} is {spot}. Please give {petname} the {pet} some {food2}. {B}",
    "To: {A} {surname}\nFrom: {B} {surname2}\n{A}, please remember the {thing}. We need it on {day} at "
    "{clock} in the "
    "{place}. {saying} {B}",
    "Dear {job},\nmy {thing} is broken. It is {colour} and {look}. Can you repair it before {day}? My name "
    "is {A} "
    "{surname} and I live at {address} in {town}.\nThank you, {A}",
)
SAYINGS = (
    "I will be late on {day}.", "The {food} is in the {place}.", "We meet at the {place} at {clock}.",
    "Please bring {counted1}.", "The {pet} is {mood} today.", "{B} has the {thing}.",
    "I am at the {place} with {B}.",
    "Do not forget the {thing}.", "It is {weather} in {town}.", "The {job} called about the {thing}.",
    "I have found the {colour} {thing}.", "Can you call {B} tonight?", "Everybody here is {mood}.",
    "We need more {food} and {food2}.", "I miss you and the {pet}.", "The {vehicle} to {town} is late.",
)  # fmt: skip


def _fill(scene: Scene, template: str) -> str:
    """Fill a template after setting the composite slots that it may use."""
    for slot, noun in (("counted1", "produce1"), ("counted2", "produce2")):
        if slot in template or "{saying}" in template:
            scene[slot] = counted(scene.rng.randrange(2, 13), scene[noun])
    if "{spelled}" in template:
        scene["spelled"] = "-".join(scene["surname"].upper())
    if "{saying}" in template:
        scene["saying"] = scene.say(scene.rng.choice(SAYINGS))
    return scene.say(template)


def story(scene: Scene) -> str:
    """A plot with an opening, now and then with what was learned from it."""
    plot = _fill(scene, scene.rng.choice(PLOTS))
    opening = scene.say(scene.rng.choice(OPENINGS))
    text = f"{opening} {upper_first(plot)}" if opening.endswith(".") else f"{opening}, {plot}"
    if scene.rng.random() < 0.25:
        text += scene.say(
            ' [In the evening|Later|The next day] {A} told {hisA} {relation} about {B}. "{B} is {trait}," said {A}.'
        )
    return text


def description(scene: Scene) -> str:
    """What a person, a place or a thing is like."""
    return _fill(scene, scene.rng.choice(DESCRIPTIONS))


def dialogue(scene: Scene) -> str:
    """A short exchange, one line per turn."""
    return _fill(scene, scene.rng.choice(DIALOGUES))


def letter(scene: Scene) -> str:
    """A letter or a note."""
    return _fill(scene, scene.rng.choice(LETTERS))


def counting(scene: Scene) -> str:
    """Things that are got and given away, with the right sum."""
    rng, noun = scene.rng, scene["produce"]
    have, more = rng.randrange(2, 11), rng.randrange(1, 9)
    less = rng.randrange(1, have + more)
    left = have + more - less
    text = scene.say(f"{{A}} has {counted(have, noun)}. {{B}} gives {{himA}} {number(more)} more. ")
    text += scene.say(f"Now {{A}} has {counted(have + more, noun)}. Then {{heA}} gives {number(less)} to {{C}}. ")
    ask = scene.say(f"How many {scene['s_produce']} does {{A}} have now? ")
    return text + ask + scene.say(f"{{A}} has {counted(left, noun)}.")


def enumeration(scene: Scene) -> str:
    """A list said as a sentence and written line by line, in either order."""
    rng = scene.rng
    kind = rng.choice(("thing", "food", "name", "animal", "town", "job", "title"))
    items = [scene[f"{kind}{i}"] for i in range(rng.randrange(2, 7))]
    said = scene.say(
        {
            "thing": "{A} packs these things: ", "food": "{A} must buy ", "name": "These people came to "
            "{town}: ",
            "animal": "In the {place} {A} saw ", "town": "On the trip to {city} {A} passed ",
            "job": "{town} needs ",
            "title": "{A} likes these songs: ",
        }[kind]
    )  # fmt: skip
    written = "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))
    parts = [said + listing(items) + ".", f"{number(len(items)).capitalize()} in all:\n{written}"]
    if rng.random() < 0.4:
        parts.reverse()
    return "\n".join(parts)


def dictation(scene: Scene) -> str:
    """Words without a connection, read out and said again: nothing but copying helps here."""
    rng = scene.rng
    kinds = rng.sample(("name", "town", "food", "thing", "job", "animal", "surname", "petname", "look", "title"), 3)
    said = [scene[f"{rng.choice(kinds)}{i}"] for i in range(rng.randrange(3, 9))]
    rng.shuffle(said)
    before, after = rng.choice((
        ("{A} reads out: ", "{B} repeats: "), ("{A} says: ", "{B} writes: "), ("{A}: ", "{B}: "),
        ("Read: ", "Again: "), ("{A} called: ", "And {heA} called once more: "),
        ("On the board: ", "In the notebook: "),
    ))  # fmt: skip
    joint = rng.choice((" ", " ", ", ", " and ", "; "))
    again = rng.choice((joint, joint, " ", ", ", "\n"))
    lines = [scene.say(before) + joint.join(said) + ".", scene.say(after) + again.join(said) + "."]
    if rng.random() < 0.3:
        lines.append("As a list: " + json.dumps(said))
    return "\n".join(lines)
