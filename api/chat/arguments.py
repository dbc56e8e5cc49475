"""The arguments of one call, from DSML parameters to JSON text that grows while they arrive."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from api.chat.json_text import NOT_JSON, parse_json, to_json, to_json_string_part

_WRAPPER_KEYS = ("arguments", "input")
"""Names under which models sometimes pass the whole arguments object as one parameter."""


class ArgumentsWriter:
    """Each method returns the JSON text it adds; ``OPEN`` stands before all, ``CLOSE`` after.

    A string streams as it comes. A JSON value is held until it is whole: what parses is copied as
    the model wrote it, what does not becomes a string.

    ``known`` are the parameter names of the function's schema, None when there is none. With it, an
    object of known parameters passed whole as ``arguments`` or ``input`` is unwrapped, unless the
    schema has a parameter of that name.
    """

    OPEN = "{"
    CLOSE = "}"

    def __init__(self, known: Collection[str] | None) -> None:
        self._known = known
        self._keys: set[str] = set()
        self._key = ""
        self._is_string = False
        self._may_wrap = False
        self._held: list[str] | None = None

    @property
    def streams(self) -> bool:
        """Whether the text of the value that is open is passed on as it comes."""
        return self._held is None

    @property
    def has_any(self) -> bool:
        """Whether a parameter was written already."""
        return bool(self._keys)

    def has(self, key: str) -> bool:
        """Returns whether a parameter of that name was written already."""
        return key in self._keys

    def begin(self, key: str, is_string: bool) -> str:
        """Starts a parameter; ``is_string`` is its ``string`` attribute."""
        self._may_wrap = (
            not self._keys
            and key in _WRAPPER_KEYS
            and self._known is not None
            and key not in self._known
        )
        self._key = key
        self._is_string = is_string
        if is_string and not self._may_wrap:
            self._held = None
            return self._member(key) + '"'
        self._held = []
        return ""

    def add(self, text: str) -> str:
        """Adds text to the value."""
        if self._held is None:
            return to_json_string_part(text)
        self._held.append(text)
        return ""

    def end(self) -> str:
        """Ends the value."""
        if self._held is None:
            return '"'
        text = "".join(self._held)
        value = parse_json(text)
        if self._may_wrap and isinstance(value, dict) and self._all_known(value):
            return "".join(self._member(key) + to_json(inner) for key, inner in value.items())
        is_json = value is not NOT_JSON and not self._is_string
        return self._member(self._key) + (text if is_json else to_json(text))

    def _all_known(self, value: dict[str, object]) -> bool:
        return bool(value) and all(key in (self._known or ()) for key in value)

    def _member(self, key: str) -> str:
        separator = ", " if self._keys else ""
        self._keys.add(key)
        return f"{separator}{to_json(key)}: "


def properties_by_name(schemas: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Returns function name -> parameter name -> its schema, where the parameters are listed."""
    properties: dict[str, Mapping[str, Any]] = {}
    for schema in schemas:
        parameters = schema.get("parameters")
        listed = parameters.get("properties") if isinstance(parameters, Mapping) else None
        if isinstance(listed, Mapping):
            properties[str(schema.get("name"))] = listed
    return properties


def takes_text(schema: Any) -> bool:
    """Returns whether a value may be a string by its schema; yes if that does not say."""
    types = schema.get("type") if isinstance(schema, Mapping) else None
    if isinstance(types, list):
        return "string" in types
    return not isinstance(types, str) or types == "string"
