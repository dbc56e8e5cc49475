"""How deeply a request body may be nested, found out before anybody walks through it.

Whoever encodes, copies or renders a value recurses once per level, and how far that goes depends on
the stack it starts from: what one thread has just decoded another cannot write out again. So the
levels are counted, without recursion, and the limit is far below what any stack can bear.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from api.errors import ApiError, invalid

MAX_NESTING = 128
"""Levels of a body. A schema of the deepest kind that is taken has half as many."""
MAX_NAME_CHARACTERS = 100
"""Of a field that an error names: the client wrote it."""
SEARCHED_BYTES = 256 * 2**10
"""Of a body that could not be decoded, to find the field at fault in."""

_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)
"""A whole string, in which brackets are text, or a bracket."""


def check_nesting(fields: Mapping[str, Any]) -> None:
    """Changes nothing; raises ApiError(400) naming the field that is nested too deeply."""
    for name, value in fields.items():
        level: list[Any] = [value] if isinstance(value, dict | list) else []
        for _ in range(1, MAX_NESTING):
            if not level:
                break
            level = [
                child
                for node in level
                for child in (node.values() if type(node) is dict else node)
                if type(child) is dict or type(child) is list
            ]
        if level:
            raise too_deep(name)


def too_deep(param: str | None) -> ApiError:
    """A 400 for a body with more levels than MAX_NESTING; param: the field, where it is known."""
    name = param if param is None else param[:MAX_NAME_CHARACTERS]
    return invalid(
        f"The body is nested too deeply; the limit is {MAX_NESTING} levels.", name, "invalid_json"
    )


def deep_field(body: bytes) -> str | None:
    """Returns the field of a body that is nested too deeply even to be decoded; None where it does
    not stand near the start."""
    depth = 0
    name = b""
    for found in _STRUCTURE.finditer(body, 0, SEARCHED_BYTES):
        token = found[0]
        if token in (b"[", b"{"):
            depth += 1
            if depth > MAX_NESTING:
                break
        elif token in (b"]", b"}"):
            depth -= 1
        elif depth == 1:
            # Of the strings at this level the one before a bracket is the bracket's key.
            name = token
    else:
        return None
    try:
        return msgspec.json.decode(name, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
