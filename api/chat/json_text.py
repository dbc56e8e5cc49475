"""JSON as the prompt format writes it and as arguments must be: strict to read, exact to write."""

import json

NOT_JSON = object()
"""What :func:`parse_json` returns for text that is not a document; None is the document null."""


def to_json(value: object) -> str:
    """Returns JSON in the style of the trained format: ``", "`` and ``": "``, no ASCII escapes."""
    return json.dumps(value, ensure_ascii=False)


def to_json_string_part(text: str) -> str:
    """Returns the inside of a JSON string; the parts of a text give the parts of its string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def parse_json(text: str) -> object:
    """Returns the value of a JSON document, or ``NOT_JSON``.

    Refused beside malformed text: NaN and Infinity, nesting or integers beyond Python's limits, and
    unpaired surrogates, which no client could be sent.
    """
    try:
        value: object = json.loads(text, parse_constant=_refuse_constant)
        to_json(value).encode()
    except (ValueError, RecursionError):
        return NOT_JSON
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
