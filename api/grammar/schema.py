"""JSON schemas as grammars need them: within limits, self-contained, with llguidance's options."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

MAX_SCHEMA_BYTES = 64 * 2**10
MAX_SCHEMA_DEPTH = 32

Schema = Mapping[str, Any]

MAPS = frozenset({"properties", "patternProperties", "dependentSchemas"})
"""Keywords whose value maps names to schemas."""
DEFINITIONS = frozenset({"$defs", "$def", "definitions"})
DATA = frozenset({"const", "default", "enum", "examples"})
"""Keywords whose value is no schema."""
ANNOTATIONS = frozenset({"title", "description", "default", "examples", "deprecated"}) | {
    *("readOnly", "writeOnly", "$schema", "$id", "$comment", "x-guidance"),
    *DEFINITIONS,
}


class SchemaError(ValueError):
    """A schema that no grammar can be made of; the message says why."""


def check_limits(schema: object) -> None:
    """Raises SchemaError for a schema that is too deep or too large to be looked at further."""
    if not isinstance(schema, dict | bool):
        raise SchemaError("a schema is an object")
    pending: list[tuple[Any, int]] = [(schema, 1)]
    least_bytes = 0
    while pending and least_bytes <= MAX_SCHEMA_BYTES:
        node, depth = pending.pop()
        if depth > MAX_SCHEMA_DEPTH:
            raise SchemaError(f"the schema is nested deeper than {MAX_SCHEMA_DEPTH} levels")
        pending += ((child, depth + 1) for child in _children(node))
        least_bytes += _least_bytes(node)
    try:
        # Megabytes are not written out to be refused.
        if least_bytes <= MAX_SCHEMA_BYTES:
            least_bytes = len(json.dumps(schema, ensure_ascii=False).encode())
    except UnicodeEncodeError as error:
        raise SchemaError("the schema holds an unpaired surrogate") from error
    if least_bytes > MAX_SCHEMA_BYTES:
        raise SchemaError(f"the schema has more than {MAX_SCHEMA_BYTES} bytes")


def sealed(schema: Schema | bool, root: Schema | bool) -> dict[str, Any]:
    """Returns a part of `root` as a schema of its own: what it refers to comes with it.

    Raises SchemaError for a reference that leads nowhere, or out of the schema.
    """
    names: dict[str, str] = {}
    definitions: dict[str, Any] = {}
    result = _rewritten(schema, names)
    while len(definitions) < len(names):
        for pointer, name in list(names.items()):
            if name not in definitions:
                definitions[name] = _rewritten(resolve(pointer, root), names)
    if isinstance(result, bool):
        result = {} if result else {"enum": []}
    return {**result, "$defs": definitions} if definitions else result


def resolve(pointer: str, root: Schema | bool) -> Schema | bool:
    """Returns the schema that a `$ref` within `root` means. Raises SchemaError."""
    if pointer != "#" and not pointer.startswith("#/"):
        raise SchemaError(f"the reference {pointer!r} leads out of the schema")
    node: Any = root
    for part in unquote(pointer).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdecimal() and len(key) < 10 and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            raise SchemaError(f"the reference {pointer!r} leads nowhere")
    if not isinstance(node, dict | bool):
        raise SchemaError(f"the reference {pointer!r} does not lead to a schema")
    return node


def with_options(schema: dict[str, Any], *, strict: bool, spaces: str | None) -> dict[str, Any]:
    """Returns the schema with llguidance's options.

    strict: refuse what cannot be enforced; otherwise it is ignored. spaces: a regex for the space
    between tokens, None: exactly as the trained format writes JSON.
    """
    options: dict[str, Any] = {"lenient": not strict}
    if spaces is None:
        options |= {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    else:
        options["whitespace_pattern"] = spaces
    return {**schema, "x-guidance": options}


def _children(node: Any) -> Iterator[Any]:
    """Yields the schemas, and the lists and objects of data, directly below a node."""
    if isinstance(node, list):
        yield from (child for child in node if isinstance(child, list | dict))
        return
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key in MAPS | DEFINITIONS and isinstance(value, dict):
            yield from (child for child in value.values() if isinstance(child, list | dict))
        elif isinstance(value, list):
            yield from (child for child in value if isinstance(child, list | dict))
        elif isinstance(value, dict):
            yield value


def _least_bytes(node: Any) -> int:
    """Returns what a node takes at least as JSON, the schemas and data below it left out."""
    values = list(node.values()) if isinstance(node, dict) else node
    if not isinstance(values, list):
        return 0
    texts = (value for value in (*node, *values) if isinstance(value, str))
    maps = (len(value) for value in values if isinstance(value, dict))
    return len(values) + sum(map(len, texts)) + sum(maps)


def _rewritten(node: Any, names: dict[str, str]) -> Any:
    """Returns a copy whose references have new names, each noted in `names`."""
    if isinstance(node, list):
        return [_rewritten(child, names) for child in node]
    if not isinstance(node, dict):
        return node
    copy: dict[str, Any] = {}
    for key, value in node.items():
        if key in DEFINITIONS or key in ("$schema", "$id", "x-guidance"):
            continue
        if key == "$ref" and isinstance(value, str):
            copy[key] = f"#/$defs/{names.setdefault(value, f'r{len(names)}')}"
        elif key in DATA:
            copy[key] = value
        elif key in MAPS and isinstance(value, dict):
            copy[key] = {name: _rewritten(child, names) for name, child in value.items()}
        else:
            copy[key] = _rewritten(value, names)
    return copy
