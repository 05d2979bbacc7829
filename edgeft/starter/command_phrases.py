"""How people ask for things: the phrases of the sample task, by intent and by the fields that they carry."""

ROOMS = (
    "living room", "kitchen", "bedroom", "bathroom", "hallway", "office", "dining room", "garage", "attic",
    "cellar",
    "guest room", "nursery", "study", "balcony", "garden", "porch", "laundry room", "workshop", "library",
    "playroom",
)  # fmt: skip
LABELS = (
    "pasta", "eggs", "tea", "pizza", "laundry", "rice", "bread", "oven", "homework", "yoga", "nap", "break",
    "cake",
    "soup", "dishes", "parking", "workout", "reading", "piano practice", "face mask", "chicken", "potatoes",
    "cookies",
)  # fmt: skip
EVENTS = (
    "lunch", "dinner", "breakfast", "coffee", "tennis", "chess", "football", "a walk", "piano practice",
    "a haircut",
    "yoga", "cinema", "swimming", "a meeting", "drinks", "choir", "book club", "a check up", "shopping",
    "a concert",
)  # fmt: skip
# A time before this hour may be followed by one of these parts of the day.
PARTS = (
    (5, ("am", "at night")), (12, ("am", "in the morning", "in the morning")), (18, ("pm",
    "in the afternoon")),
    (24, ("pm", "in the evening", "in the evening")),
)  # fmt: skip
# What may stand before and after a request; only orders go with "could you".
FILLERS = {
    "order": (
        "[|||||please |can you |could you please |hey |okay |um |uh |hey can you |so um |would you |I need "
        "you to |listen "
        "|right |okay so |go ahead and |do me a favour and |could you |I would like you to ]",
        "[||||||| please| thanks| thank you]",
    ),
    "other": ("[||||hey |um |okay |so |uh |sorry |right |well |okay so ]", "[||||||| please| thanks| thank you]"),
}
ORDERS = frozenset(
    [
        "wake",
        "set",
        "put",
        "make",
        "get",
        "ring",
        "start",
        "give",
        "count",
        "let",
        "time",
        "track",
        "turn",
        "switch",
        "kill",
        "dim",
        "bring",
        "change",
        "heat",
        "warm",
        "keep",
        "play",
        "tell",
        "text",
        "message",
        "send",
        "write",
        "drop",
        "say",
        "add",
        "remember",
        "remind",
        "call",
        "phone",
        "dial",
        "take",
        "guide",
        "navigate",
        "find",
        "schedule",
        "plan",
        "book",
        "help",
    ]
)
MESSAGES = (
    "I am running late",
    "I will be there in {some} minutes",
    "I miss you",
    "dinner is ready",
    "the {pet} is {mood}",
    "I am at the {place}",
    "do not forget the {thing}",
    "happy birthday",
    "can you pick me up from the {place}",
    "I left my {thing} at the {place}",
    "we are out of {food}",
    "the {vehicle} to {town} is late",
    "call me back",
    "I found your {colour} {thing}",
    "see you {day} at the {place}",
    "bring {food} and {food2}",
    "{name} is here",
    "the meeting is in the {place}",
    "my {relation} is coming on {day}",
    "I love the {material} {thing}",
    "are you free on {day}",
    "please water the plants",
    "the {job} is on the way",
    "{petname} ate the {food}",
    "I just left {town}",
    "good luck with the {hobby} exam",
    "sorry about the {thing}",
    "you can have the {thing}",
    "it is {weather} in {town}",
    "{name} and {name2} are coming too",
    "what time does the {place} open",
    "do you want {food} or {food2}",
    "I cannot come to {hobby} today",
    "the {thing} is {spot}",
    "thanks for the {food}",
)
TASKS = (
    "buy {food}",
    "water the plants",
    "feed {petname}",
    "call {name}",
    "take out the rubbish",
    "pay the {job}",
    "pick up {name} from the {place}",
    "return the {thing}",
    "fix the {colour} {thing}",
    "charge my {thing}",
    "bring the {thing} to {name}",
    "book a table for {some}",
    "take the {food} out of the oven",
    "walk the {pet}",
    "send the {thing} to {town}",
    "clean the {place}",
    "write to my {relation}",
    "practise {hobby}",
    "pack the {thing}",
    "ask {name} about the {thing}",
    "lock the {place}",
    "take my pills",
    "order {food} and {food2}",
    "wrap the {thing}",
    "get the {thing} from {name} {surname}",
    "visit my {relation} in {town}",
    "wash the {material} {thing}",
)

_Form = tuple[str, tuple[tuple[str, str], ...], tuple[str, ...]]
FORMS: tuple[_Form, ...] = (
    ("set_alarm", (("time", "{#time}"),), (
        "wake me [up |]at {time}", "set an alarm for {time}", "[put|make] an alarm at {time}",
        "alarm at {time}",
        "I [have|need] to get up at {time}", "get me out of bed at {time}",
    )),
    ("set_alarm", (("time", "{#time}"), ("day", "{#date}")), (
        "wake me [up |]at {time} {date}", "set [an|my] alarm for {time} {date}", "{date} wake me at {time}",
        "I need an alarm {date} at {time}", "[ring|beep] at {time} {date} so I get up",
    )),
    ("set_timer", (("minutes", "{#minutes}"),), (
        "set a timer for {minutes} minutes", "[start|give me] a {minutes} minute timer",
        "count down {minutes} minutes",
        "{minutes} minutes on the clock", "let me know when {minutes} minutes are [over|up]",
    )),
    ("set_timer", (("minutes", "{#minutes}"), ("label", "{label}")), (
        "set a {label} timer for {minutes} minutes", "timer for the {label} {minutes} minutes",
        "the {label} [needs|takes] {minutes} minutes start a timer", "start a {minutes} minute timer for "
        "the {label}",
        "[time|track] the {label} for {minutes} minutes",
    )),
    ("set_timer", (("seconds", "{#seconds}"),), ("[set|start] a timer for {seconds} seconds",
    "count {seconds} seconds")),
    ("set_timer", (("hours", "{#hours}"), ("label", "{label}")), (
        "set a timer called {label} for {hours} hours", "{label} timer {hours} hours",
        "{hours} hours for the {label}",
    )),
    ("light", (("room", "{room}"), ("state", "on")), (
        "[turn|switch] on the {room} [light|lights]", "[turn|switch] the [light|lights] in the {room} on",
        "it is [too |]dark in the {room}", "make it bright in the {room}",
    )),
    ("light", (("room", "{room}"), ("state", "off")), (
        "[turn|switch] off the {room} [light|lights]", "[turn|switch] the [light|lights] in the {room} off",
        "kill the lights in the {room}", "nobody is in the {room} so no light there",
    )),
    ("light", (("room", "{room}"), ("level", "{#level}")), (
        "dim the {room} [light|lights] to {level}", "set the {room} light to {level}",
        "[put|bring] the lights in the {room} [to|at] {level}", "{room} brightness {level}",
    )),
    ("light", (("room", "{room}"), ("colour", "{tint}")), (
        "make the {room} light {tint}", "[turn|change] the lights in the {room} [to |]{tint}",
        "{tint} light in the {room}",
        "I want the {room} in {tint}",
    )),
    ("thermostat", (("degrees", "{#degrees}"),), (
        "set the [heating|thermostat|temperature] to {degrees} [degrees|]", "make it {degrees} degrees in "
        "here",
        "[heat|warm] the house to {degrees} degrees", "I want {degrees} degrees",
    )),
    ("thermostat", (("room", "{room}"), ("degrees", "{#degrees}")), (
        "set the {room} to {degrees} degrees", "heat the {room} to {degrees}", "{degrees} degrees in the "
        "{room}",
        "[keep|make] the {room} at {degrees} degrees", "bring the [temperature|heating] in the {room} to "
        "{degrees}",
    )),
    ("play_music", (("song", "{song}"),), (
        "play [the song |]{song}", "put on {song}", "I [want|would like] to hear {song}",
        "let me hear {song}",
    )),
    ("play_music", (("artist", "{artist}"),), (
        "play [something|music|a song|songs] by {artist}", "put on [some|something from] {artist}",
        "I am in the mood for {artist}", "[some|a bit of] {artist} would be nice",
    )),
    ("play_music", (("song", "{song}"), ("artist", "{artist}")), (
        "play {song} by {artist}", "put on {song} [by|from] {artist}", "I want to listen to {song} by "
        "{artist}",
        "{artist} has a song called {song} play it",
    )),
    ("play_music", (("artist", "{artist}"), ("room", "{room}")), (
        "play {artist} in the {room}", "in the {room} put on {artist}", "let us have {artist} in the {room}",
    )),
    ("send_message", (("to", "{person}"), ("text", "{message}")), (
        "tell {person} [that |]{message}", "[text|message] {person} {message}", "send {person} a message "
        "[saying|that says] "
        "{message}", "let {person} know [that |]{message}", "write to {person} {message}",
        "send {message} to {person}",
        "new message to {person} {message}", "drop {person} a line that {message}", "say {message} to "
        "{person}",
    )),
    ("shopping_list", (("items", "{#goods}"),), (
        "[add|put] {goods} [to|on] [the|my] shopping list", "we [need|are out of|have no more] {goods}",
        "I have to buy {goods}", "remember {goods} for the shop", "{goods} go on the list",
        "shopping list {goods}",
    )),
    ("remind", (("task", "{task}"), ("time", "{#time}")), (
        "remind me to {task} at {time}", "at {time} remind me to {task}", "do not let me forget to {task} "
        "at {time}",
        "[set|make] a reminder for {time} to {task}", "I [must|have to] {task} at {time} remind me",
    )),
    ("remind", (("task", "{task}"), ("day", "{#date}")), (
        "remind me {date} to {task}", "remind me to {task} {date}", "{date} I have to {task} remind me",
        "make a note that I have to {task} {date}",
    )),
    ("remind", (("task", "{task}"), ("day", "{#date}"), ("time", "{#time}")), (
        "remind me to {task} {date} at {time}", "{date} at {time} remind me to {task}",
        "set a reminder to {task} at {time} {date}",
    )),
    ("weather", (("place", "{town}"),), (
        "what is the weather [like |]in {town}", "how is the weather in {town}", "is it raining in {town}",
        "how [warm|cold|hot] is it in {town}", "I want the weather for {town}",
    )),
    ("weather", (("place", "{town}"), ("day", "{#date}")), (
        "what will the weather be [like |]in {town} {date}", "will it [rain|snow] in {town} {date}",
        "do I need [an umbrella|a coat] in {town} {date}", "is it going to be [sunny|warm|windy] {date} in "
        "{town}",
        "how warm will it be {date} in {town}",
    )),
    ("call", (("name", "{person}"),), (
        "call {person}", "[ring|phone|dial] {person}", "give {person} a [call|ring]",
        "get {person} on the [phone|line]",
        "I [want|need] to [talk|speak] to {person}", "put me through to {person}",
    )),
    ("call", (("name", "{person}"), ("video", "yes")), (
        "video call {person}", "[start|make] a video call with {person}", "call {person} [with|on] video",
        "I want to see {person} on the screen",
    )),
    ("navigate", (("to", "{goal}"),), (
        "[take|guide|bring] me to {goal}", "navigate to {goal}", "how do I get to {goal}",
        "what is the way to {goal}",
        "directions to {goal}", "I want to go to {goal}",
    )),
    ("navigate", (("to", "{goal}"), ("by", "{vehicle}")), (
        "how do I get to {goal} by {vehicle}", "find a way to {goal} by {vehicle}", "[take|get] me to "
        "{goal} by {vehicle}",
        "I want to go by {vehicle} to {goal}", "route by {vehicle} to {goal}",
    )),
    ("volume", (("level", "{#level}"),), (
        "[set|turn|put] the volume [to|at] {level}", "volume {level}", "make it [louder|quieter] go to "
        "{level}",
        "sound at {level}",
    )),
    ("volume", (("room", "{room}"), ("level", "{#level}")), (
        "[set|turn] the volume in the {room} to {level}", "{room} speaker at {level}",
        "put the {room} speaker to {level}",
        "in the {room} I want {level} volume",
    )),
    ("add_event", (("title", "{event}"), ("with", "{person}"), ("day", "{#date}"), ("time", "{#time}")), (
        "[schedule|plan|book] {event} with {person} {date} at {time}", "put {event} with {person} in the "
        "calendar {date} at "
        "{time}", "{date} at {time} I have {event} with {person}", "add {event} with {person} at {time} "
        "{date}",
    )),
    ("add_event", (("title", "meeting"), ("with", "{person}"), ("day", "{#date}")), (
        "I am meeting {person} {date}", "set up a meeting with {person} {date}", "{date} I meet {person} "
        "put it in the "
        "calendar", "new meeting {date} with {person}",
    )),
    ("find_thing", (("thing", "{thing}"),), (
        "where is my {thing}", "I cannot find my {thing}", "help me find the {thing}",
        "have you seen my {thing}",
        "make my {thing} ring", "I lost the {thing} again",
    )),
)  # fmt: skip
