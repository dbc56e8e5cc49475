"""The tools of the training data: many spellings of a dozen abilities, with simulated results."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import msgspec

from training.tasks.lexicon import draw


class Ability(msgspec.Struct, frozen=True):
    """Something a tool can do. Alternatives are separated by `|`; {a}, {b} are the arguments.

    Fields of the result are {x} and {y}.
    """

    names: str
    descriptions: str
    parameters: tuple[tuple[str, str, str], ...]
    """(names, kind in the lexicon, JSON type) of each argument."""
    topic: str
    """Completes "The user asks ..."."""
    questions: str
    fields: tuple[tuple[str, str], ...]
    """(JSON keys, kind) of each part of the result."""
    texts: str
    """The result as plain text."""
    reply: str


ABILITIES: dict[str, Ability] = {
    "weather": Ability(
        "get_weather|weather|check_weather|get_current_weather|lookup_weather",
        "Get the weather of a city|Current weather in a city|Weather for a place|"
        "Get current weather",
        (("city|location|place", "city", "string"),),
        "for the weather in {a}",
        "What is the weather in {a}?|How is the weather in {a}?|What's the weather like in {a}?|"
        "Tell me the weather in {a}.|Weather in {a}?|What is the weather like in {a} today?|"
        "How is the weather in {a} now?",
        (("weather|condition|forecast|sky", "weather"), ("temperature|degrees|temp", "degrees")),
        "{x}, {y} degrees|{x} and {y} degrees|It is {x}, {y} degrees|{x} {y}",
        "The weather in {a} is {x}, {y} degrees.",
    ),
    "sky": Ability(
        "get_weather|weather|check_weather|get_forecast|forecast",
        "Get the weather of a city|Weather forecast for a city|Get the forecast of a place",
        (("city|location|place", "city", "string"),),
        "for the weather in {a}",
        "What is the weather in {a}?|How is the weather in {a}?|What's the weather like in {a}?|"
        "Tell me the weather in {a}.|What will the weather be in {a}?",
        (("weather|condition|forecast|sky", "weather"),),
        "{x}|It is {x}|The weather is {x}|{x} today",
        "The weather in {a} is {x}.",
    ),
    "time": Ability(
        "get_time|time|current_time|get_local_time|clock",
        "Get the time in a city|Local time of a city|Tell the current time|Get the local time",
        (("city|location|place", "city", "string"),),
        "for the time in {a}",
        "What time is it in {a}?|What is the time in {a}?|Tell me the time in {a}.|"
        "How late is it in {a}?|What's the local time in {a}?",
        (("time|local_time|clock", "clock"),),
        "{x}|It is {x}|The time is {x}",
        "It is {x} in {a}.",
    ),
    "capital": Ability(
        "get_capital|capital|find_capital|capital_of|lookup_capital",
        "Get the capital of a country|Capital city of a country|Find the capital",
        (("country|nation|land", "country", "string"),),
        "for the capital of {a}",
        "What is the capital of {a}?|Which city is the capital of {a}?|Tell me the capital of {a}.|"
        "What's the capital of {a}?|Name the capital of {a}.",
        (("capital|city|result", "city"),),
        "{x}|The capital is {x}|{x} is the capital",
        "The capital of {a} is {x}.",
    ),
    "phone": Ability(
        "lookup_phone|get_phone|find_phone|phone_book|get_number",
        "Look up the phone number of a person|Find a phone number|Phone number of a person",
        (("name|person|who", "name", "string"),),
        "for the phone number of {a}",
        "What is the phone number of {a}?|What is {a}'s phone number?|How can I call {a}?|"
        "Tell me the phone number of {a}.|Find the phone number of {a}.|What's {a}'s number?",
        (("phone|number|phone_number", "code"),),
        "{x}|The number is {x}|phone {x}",
        "The phone number of {a} is {x}.",
    ),
    "home": Ability(
        "find_city|get_home|lookup_city|where_is|get_city",
        "Find the city where a person lives|Home city of a person|City of a person",
        (("name|person|who", "name", "string"),),
        "where {a} lives",
        "Where does {a} live?|In which city does {a} live?|Find out where {a} lives.|"
        "Look up where {a} lives.|Which city does {a} live in?",
        (("city|home|lives_in", "city"),),
        "{x}|{a} lives in {x}|lives in {x}",
        "{a} lives in {x}.",
    ),
    "owner": Ability(
        "find_owner|get_owner|owner_of|lookup_owner|who_owns",
        "Find the owner of a thing|Owner of an object|Who owns a thing",
        (("item|object|thing", "object", "string"),),
        "who owns the {a}",
        "Who owns the {a}?|Find the owner of the {a}.|Who is the owner of the {a}?|"
        "Look up who owns the {a}.|Whose is the {a}?",
        (("owner|name|person", "name"),),
        "{x}|The owner is {x}|{x} owns it",
        "The {a} belongs to {x}.",
    ),
    "locate": Ability(
        "find_object|locate|find_item|search_item|where_is",
        "Find where a thing is|Locate an object in the house|Search for a thing",
        (("item|object|thing", "object", "string"),),
        "where the {a} is",
        "Where is the {a}?|Where can I find the {a}?|Find the {a}.|Locate the {a}.|"
        "Look up where the {a} is.",
        (("place|room|location", "place"),),
        "{x}|in the {x}|It is in the {x}",
        "The {a} is in the {x}.",
    ),
    "price": Ability(
        "get_price|price|lookup_price|check_price|price_of",
        "Get the price of a thing|Price of an item in euros|Look up a price",
        (("item|object|product", "object", "string"),),
        "what the {a} costs",
        "How much does the {a} cost?|What does the {a} cost?|What is the price of the {a}?|"
        "How much is the {a}?|Look up the price of the {a}.",
        (("price|euros|cost", "number"),),
        "{x}|{x} euros|It costs {x} euros",
        "The {a} costs {x} euros.",
    ),
    "event": Ability(
        "get_event|find_event|calendar|lookup_event|get_date_of",
        "Find the day of an event|Look up an event in the calendar|Day of an event",
        (("event|title|name", "event", "string"),),
        "when the {a} is",
        "When is the {a}?|On which day is the {a}?|What day is the {a}?|Look up the {a}.|"
        "Find out when the {a} is.",
        (("day|date|weekday", "day"),),
        "{x}|on {x}|It is on {x}",
        "The {a} is on {x}.",
    ),
    "today": Ability(
        "get_date|today|current_day|get_day|get_today",
        "Get the current day|Which day is today|Today's day of the week",
        (),
        "which day it is",
        "What day is it?|Which day is today?|What day is it today?|Tell me what day it is.|"
        "What is today?|Which day is it?",
        (("day|today|weekday", "day"),),
        "{x}|It is {x}|Today is {x}",
        "Today is {x}.",
    ),
    "add": Ability(
        "add|add_numbers|sum|calculator|plus",
        "Add two numbers|Sum of two numbers|Calculate a sum",
        (("a|x|first", "number", "integer"), ("b|y|second", "number", "integer")),
        "for {a} plus {b}",
        "What is {a} plus {b}?|Add {a} and {b}.|How much is {a} plus {b}?|Calculate {a} + {b}.|"
        "What is {a} + {b}?|What is the sum of {a} and {b}?",
        (("sum|result|value|total", "number"),),
        "{x}|The sum is {x}|result {x}",
        "{a} plus {b} is {x}.",
    ),
    "timer": Ability(
        "set_timer|timer|start_timer|set_alarm|countdown",
        "Start a timer|Set a timer in minutes|Set an alarm in some minutes",
        (("minutes|duration|time", "number", "integer"),),
        "for a timer of {a} minutes",
        "Set a timer for {a} minutes.|Start a timer of {a} minutes.|Wake me in {a} minutes.|"
        "Please set a timer to {a} minutes.|I need a timer for {a} minutes.",
        (("minutes|set|timer", "same"),),
        "ok|done|timer set|ok, {x} minutes",
        "The timer is set to {a} minutes.",
    ),
    "message": Ability(
        "send_message|message|send_text|text_person|notify",
        "Send a message to a person|Send a short text|Write a message to somebody",
        (("to|name|person", "name", "string"), ("text|message|content", "note", "string")),
        "to tell {a}: {b}",
        "Tell {a}: {b}|Send {a} the message: {b}|Write to {a}: {b}|Send a message to {a}: {b}",
        (("status|result|state", "sent"),),
        "{x}|ok, {x}|message {x}",
        "The message to {a} was {x}.",
    ),
}
NOTES = (
    "I am late",
    "dinner is ready",
    "the meeting is over",
    "call me back",
    "I am at home",
    "the train is late",
    "happy birthday",
    "see you soon",
    "we need milk",
    "the door is open",
    "good luck",
    "I am on my way",
    "please come home",
    "the game starts now",
    "thank you",
)


class Tool(msgspec.Struct, frozen=True):
    """One spelling of an ability: the name and argument names that one schema shows."""

    ability: str
    name: str
    parameters: tuple[str, ...]
    schema: dict[str, Any]


def pick(rng: Random, alternatives: str) -> str:
    """One of the alternatives."""
    return rng.choice(alternatives.split("|"))


def draw_argument(rng: Random, kind: str) -> str:
    """A random argument as text."""
    return rng.choice(NOTES) if kind == "note" else draw(rng, kind)


def draw_tool(rng: Random, ability: str, taken: set[str], usual: float = 0.5) -> Tool:
    """A spelling of `ability` whose name is not taken; adds its name to `taken`.

    Names are with probability `usual` the first of their alternatives, else any of them.
    """
    spec = ABILITIES[ability]
    free = [name for name in spec.names.split("|") if name not in taken]
    if not free:
        raise ValueError(f"every name of {ability!r} is taken: {sorted(taken)}")
    name = free[0] if rng.random() < usual else rng.choice(free)
    taken.add(name)
    described, closed = rng.random() < 0.15, rng.random() < 0.1
    properties: dict[str, Any] = {}
    for names, _, json_type in spec.parameters:
        options = [one for one in names.split("|") if one not in properties]
        parameter = options[0] if rng.random() < usual else rng.choice(options)
        properties[parameter] = {"type": json_type}
        if described:
            properties[parameter]["description"] = f"The {parameter}"
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        parameters["required"] = list(properties)
    if closed:
        parameters["additionalProperties"] = False
    schema = {
        "name": name,
        "description": pick(rng, spec.descriptions) + rng.choice(("", "", ".")),
        "parameters": parameters,
    }
    return Tool(ability, name, tuple(properties), schema)


def draw_result(rng: Random, ability: str, arguments: list[str]) -> tuple[str, dict[str, str]]:
    """(what the tool returns, the values {x}, {y} in it): JSON, or a short text."""
    spec = ABILITIES[ability]
    values: dict[str, str] = {}
    for letter, (_, kind) in zip("xy", spec.fields, strict=False):
        if kind == "same":
            values[letter] = arguments[0]
        elif kind == "sent":
            values[letter] = rng.choice(("sent", "delivered", "received"))
        else:
            values[letter] = draw(rng, kind)
    if rng.random() < 0.4:
        names = dict(zip("ab", arguments, strict=False))
        return pick(rng, spec.texts).format(**names, **values), values
    record: dict[str, Any] = {}
    if rng.random() < 0.2 and arguments:
        record[spec.parameters[0][0].split("|")[0]] = arguments[0]
    for letter, (keys, _) in zip("xy", spec.fields, strict=False):
        value = values[letter]
        record[pick(rng, keys)] = int(value) if value.isdigit() and rng.random() < 0.8 else value
    return json.dumps(record), values
