"""What a schema says of one value, cut into plain text and JSON.

In a tool call a string argument stands as it is, every other value as JSON. What a schema says of
strings therefore becomes an expression over plain text, the rest stays a schema.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from llguidance import regex_to_lark

from api.chat.markers import DSML
from api.grammar.schema import ANNOTATIONS, Schema, SchemaError, resolve

STRING_KEYWORDS = frozenset({"minLength", "maxLength", "pattern", "format"})
OTHER_TYPES = ["object", "array", "number", "integer", "boolean", "null"]
"""Every type but string."""

ANY_TEXT = "/(?s:.*)/"
MAX_PATTERN_CHARACTERS = 4096
MAX_VISITED_SCHEMAS = 1000
"""Of one value: references can be followed in exponentially many ways."""
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_HOUR = "([01][0-9]|2[0-3])"
_TIME = rf"{_HOUR}:[0-5][0-9]:[0-5][0-9](\.[0-9]{{1,9}})?(Z|[+-]{_HOUR}:[0-5][0-9])"
_OCTET = "(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": rf"{_OCTET}(\.{_OCTET}){{3}}",
    "hostname": rf"{_LABEL}(\.{_LABEL})*",
    "email": rf"[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@{_LABEL}(\.{_LABEL})+",
}
"""JSON Schema format -> regex over plain text."""


class Visits:
    """How many schemas were looked at, so that shared references end."""

    def __init__(self) -> None:
        self.left = MAX_VISITED_SCHEMAS

    def count(self) -> None:
        """Counts one; raises SchemaError when there were too many."""
        self.left -= 1
        if self.left < 0:
            raise SchemaError(f"its references lead to more than {MAX_VISITED_SCHEMAS} schemas")


class Values(NamedTuple):
    """The values a schema allows, by the form in which a call writes them."""

    texts: list[str]
    """Strings, as llguidance terminal expressions over their plain text."""
    other: Schema | bool | None
    """What is written as JSON; None: nothing is."""


def values_of(
    schema: Schema | bool,
    root: Schema,
    *,
    strict: bool,
    seen: frozenset[str] = frozenset(),
    visits: Visits | None = None,
) -> Values:
    """Returns the values that a schema within `root` allows.

    strict: what cannot be said of plain text is said in JSON, and stays exact; otherwise the
    string stays plain text. seen: references that led to this schema; visits: of the whole value.
    Raises SchemaError.
    """
    visits = visits or Visits()
    visits.count()
    while isinstance(schema, dict) and isinstance(pointer := schema.get("$ref"), str):
        if pointer in seen:
            raise SchemaError(f"the reference {pointer!r} means itself")
        if _keywords(schema) != {"$ref"}:
            return Values([], schema)
        seen |= {pointer}
        schema = resolve(pointer, root)
    if isinstance(schema, bool):
        if not schema:
            raise SchemaError("nothing is valid under the schema false")
        schema = {}
    if not isinstance(schema, dict):
        raise SchemaError("a schema is an object")
    keywords = _keywords(schema)
    for union in ("anyOf", "oneOf"):
        if union in keywords:
            if keywords != {union}:
                return _json(schema)
            return _union(schema, union, root, strict, seen, visits)
    if keywords & {"allOf", "not", "if"}:
        return _json(schema)
    if keywords & {"enum", "const"}:
        return _enumerated(schema, keywords)
    return _typed(schema, strict)


def _json(schema: Schema) -> Values:
    """Strings too, in quotes: not as trained, but nothing the schema says is lost."""
    return Values([], schema)


def _union(
    schema: Schema,
    union: str,
    root: Schema,
    strict: bool,
    seen: frozenset[str],
    visits: Visits,
) -> Values:
    branches = schema[union]
    if not isinstance(branches, list) or not branches:
        raise SchemaError(f"{union} is not a list of schemas")
    parts = [
        values_of(branch, root, strict=strict, seen=seen, visits=visits) for branch in branches
    ]
    if union == "oneOf" and sum(bool(part.texts) for part in parts) > 1:
        return _json(schema)
    others = [part.other for part in parts if part.other is not None]
    rest: Schema | bool | None = None
    if others:
        rest = others[0] if len(others) == 1 else {union: others}
    return Values([text for part in parts for text in part.texts], rest)


def _enumerated(schema: Schema, keywords: set[str]) -> Values:
    values = [schema["const"]] if "const" in keywords else schema["enum"]
    if not isinstance(values, list):
        raise SchemaError("enum is not a list")
    if keywords - {"enum", "const", "type"} or len(keywords & {"enum", "const"}) == 2:
        return _json(schema)
    types = schema.get("type", "string")
    strings = [value for value in values if isinstance(value, str)]
    if "string" not in (types if isinstance(types, list) else [types]):
        strings = []
    if any(DSML in value for value in strings):
        return _json(schema)
    others = [value for value in values if not isinstance(value, str)]
    if not strings and not others:
        raise SchemaError("an enum without values")
    rest = {key: value for key, value in schema.items() if key != "const"} | {"enum": others}
    return Values([literal(value) for value in strings], rest if others else None)


def _typed(schema: Schema, strict: bool) -> Values:
    given = schema.get("type", ["string", *OTHER_TYPES])
    types = given if isinstance(given, list) else [given]
    if "string" not in types:
        return Values([], schema)
    text = _text(schema, strict)
    if text is None:
        return _json(schema)
    rest = [type_ for type_ in types if type_ != "string"]
    kept = {key: value for key, value in schema.items() if key not in STRING_KEYWORDS}
    return Values([text], {**kept, "type": rest} if rest else None)


def _text(schema: Schema, strict: bool) -> str | None:
    """Returns what a schema says of strings as a terminal; None when it cannot be said so."""
    limits = []
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    if not isinstance(low, int) or not isinstance(high, int | None):
        raise SchemaError("minLength and maxLength are whole numbers")
    if low > 0 or high is not None:
        limits.append(f"/(?s:.{{{max(0, low)},{'' if high is None else max(0, high)}}})/")
    if (pattern := schema.get("pattern")) is not None:
        regex = _searched(pattern) if isinstance(pattern, str) else None
        if regex is None:
            return None
        limits.append(f"/{regex}/")
    if (format_ := schema.get("format")) is not None:
        if not isinstance(format_, str):
            raise SchemaError("format is a text")
        if format_ in FORMATS:
            limits.append(f"/{FORMATS[format_]}/")
        elif strict:
            return None
    return " & ".join(limits) if limits else ANY_TEXT


def _searched(pattern: str) -> str | None:
    """Returns a regex of the whole text for a pattern that is searched in it, None if unsure."""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise SchemaError(
            f"a pattern has {len(pattern)} characters; the limit is {MAX_PATTERN_CHARACTERS}"
        )
    begins = pattern.startswith("^")
    ends = bool(re.search(r"(?<!\\)(\\\\)*\$$", pattern))
    body = pattern[begins : len(pattern) - ends]
    plain = _without_classes(body)
    if re.search(r"[\^$\n\r]|\(\?[=!<]", plain) or ((begins or ends) and _alternates(plain)):
        return None
    try:
        inner = regex_to_lark(body, use_ascii="dw")
    except ValueError:
        return None
    return f"{'' if begins else '(?s:.*)'}({inner}){'' if ends else '(?s:.*)'}"


def _without_classes(regex: str) -> str:
    """Returns a regex without its escapes and character classes, in one pass over it."""
    kept = []
    place = 0
    while place < len(regex):
        character = regex[place]
        if character == "\\":
            place += 2
            continue
        if character == "[" and (end := _class_end(regex, place)) is not None:
            place = end
            continue
        if character == "[":
            # Not closed, so neither is any later one: llguidance will refuse it.
            kept.append(regex[place:])
            break
        kept.append(character)
        place += 1
    return "".join(kept)


def _class_end(regex: str, start: int) -> int | None:
    """Returns the place behind the class that opens at `start`; None when it does not close."""
    place = start + 1
    place += regex[place : place + 1] == "^"
    place += regex[place : place + 1] == "]"
    while place < len(regex) and regex[place] != "]":
        place += 2 if regex[place] == "\\" else 1
    return place + 1 if place < len(regex) else None


def _alternates(plain: str) -> bool:
    """Whether a regex without escapes and classes has a `|` outside of its groups."""
    depth = 0
    for character in plain:
        depth += (character == "(") - (character == ")")
        if character == "|" and depth == 0:
            return True
    return False


def literal(text: str) -> str:
    """Returns a string literal of llguidance's Lark."""
    return json.dumps(text, ensure_ascii=False)


def _keywords(schema: Schema) -> set[str]:
    return set(schema) - ANNOTATIONS
