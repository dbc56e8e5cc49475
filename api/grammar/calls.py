"""The grammar of tool calls: DSML exactly as the model was trained to write it.

    NL NL <｜DSML｜function_calls> NL invoke (NL invoke)* NL </｜DSML｜function_calls>

The marker inside the tags is one token and stands in the grammar by its id, so text can never end a
value early. Parameters come in the order of the schema's properties.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from api.grammar.schema import ANNOTATIONS, Schema, SchemaError, resolve, sealed, with_options
from api.grammar.values import ANY_TEXT, literal, values_of

PARAMETER_NAME = re.compile(r'[^"<\n]{1,256}')
"""Names that can stand between quotes in a tag."""
TERMINALS = r"""
TEXT_END: /(?s:.*)<\//
NAME: /[^"<\n]{1,64}/
"""
MAX_RULES_CHARACTERS = 256 * 2**10
"""Of one function: a definition stands in its rules once per parameter that uses it."""
_ENFORCED = {"type", "properties", "required", "additionalProperties", "strict"}


class CallGrammar:
    """Writes the rules of a request's calls, in llguidance's Lark."""

    def __init__(self, dsml_token_id: int) -> None:
        self._marker = f"<[{dsml_token_id}]>"

    def rules(self, functions: Sequence[str], *, one_call: bool) -> str:
        """Returns rules of which `calls` is a whole block of calls, with what separates it from the
        content before it, and `block` the same behind its first marker.

        functions: the rules of each function, f0, f1 and so on.
        """
        marker = self._marker
        more = "" if one_call else rf' ("\n<" {marker} invoke)*'
        names = " | ".join(f"f{index}" for index in range(len(functions)))
        return "\n".join(
            [
                rf'calls: "\n\n<" {marker} block',
                rf'block: "function_calls>\n<" {marker} invoke{more}'
                rf' "\n</" {marker} "function_calls>"',
                f"invoke: {names}",
                *functions,
                rf'any_params: | "<" {marker} any_param ("\n<" {marker} any_param)*',
                f"any_param: {self._parameter('any', None, [ANY_TEXT], True)}",
                "any_json: %json " + _json({}, strict=False),
                TERMINALS,
            ]
        )

    def free(self, index: int, name: str) -> str:
        """Returns the rules of calls to a function whose arguments may be anything."""
        return self._invoke(index, name, "any_params")

    def function(self, index: int, function: Mapping[str, Any], *, strict: bool) -> str:
        """Returns the rules of calls to a function whose arguments follow its schema.

        strict: exactly; otherwise keywords that cannot be enforced are ignored.
        Raises SchemaError for parameters that cannot be constrained.
        """
        root = function.get("parameters") or {}
        schema = _object_schema(root, strict)
        properties = schema.get("properties") or {}
        required = schema.get("required") or []
        additional = schema.get("additionalProperties")
        if not isinstance(properties, dict):
            raise SchemaError("properties must be an object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise SchemaError("required must be a list of names")
        if not properties and not required and additional not in (None, False):
            if strict and additional is not True:
                raise SchemaError("a strict function must list its properties")
            return self.free(index, function["name"])
        fallback = additional if isinstance(additional, dict) else {}
        names = list(dict.fromkeys((*properties, *required)))
        written = [name for name in names if _writable(name, name in required or strict)]
        lines = [self._invoke(index, function["name"], f"f{index}_first0")]
        for place, name in enumerate(written):
            rule = f"f{index}_p{place}"
            values = values_of(properties.get(name, fallback), root, strict=strict)
            lines.append(
                f"{rule}: {self._parameter(rule, name, values.texts, values.other is not None)}"
            )
            if values.texts and values.texts != [ANY_TEXT]:
                texts = " | ".join(f"({text})" for text in values.texts)
                lines.append(f'{rule.upper()}_END: ({texts}) "</"')
            if values.other is not None:
                document = sealed(values.other, root)
                lines.append(f"{rule}_json: %json {_json(document, strict=strict)}")
            if sum(map(len, lines)) > MAX_RULES_CHARACTERS:
                raise SchemaError("the parameters are too large when references are followed")
        return "\n".join(lines + self._in_order(index, [name in required for name in written]))

    def _invoke(self, index: int, name: str, parameters: str) -> str:
        marker, head = self._marker, literal(f'invoke name="{name}">\n')
        return rf'f{index}: {head} {parameters} "\n</" {marker} "invoke>"'

    def _parameter(self, rule: str, name: str | None, texts: list[str], json_too: bool) -> str:
        """A parameter whose text is `texts` or whose JSON is `<rule>_json`; name: None for any."""
        forms = []
        if texts:
            terminal = "TEXT_END" if texts == [ANY_TEXT] else f"{rule.upper()}_END"
            forms.append(("true", terminal))
        if json_too:
            forms.append(("false", f'{rule}_json "</"'))
        marker, alternatives = self._marker, []
        for is_string, value in forms:
            if name is None:
                named = literal('parameter name="') + " NAME " + literal(f'" string="{is_string}">')
            else:
                named = literal(f'parameter name="{name}" string="{is_string}">')
            alternatives.append(f'{named} {value} {marker} "parameter>"')
        return " | ".join(alternatives)

    def _in_order(self, index: int, required: Sequence[bool]) -> list[str]:
        """Rules for parameters in order, the optional ones left out or not.

        `first<n>`: from the n-th on, and none was written yet; `rest<n>`: one was. The line feed
        between two is one literal with what follows it: the longest literal wins, and another
        begins with the same line feed.
        """
        lines, function = [], f"f{index}"
        for place, needed in enumerate(required):
            parameter, then = f"{function}_p{place}", f"{function}_rest{place + 1}"
            for state, opening in (("first", '"<"'), ("rest", r'"\n<"')):
                skip = "" if needed else f" | {function}_{state}{place + 1}"
                written = f"{opening} {self._marker} {parameter} {then}"
                lines.append(f"{function}_{state}{place}: {written}{skip}")
        return [*lines, *(f'{function}_{state}{len(required)}: ""' for state in ("first", "rest"))]


def _object_schema(root: Schema, strict: bool) -> Schema:
    """Returns the schema of the arguments object. Raises SchemaError when it is none."""
    if not isinstance(root, Mapping):
        raise SchemaError("parameters must be an object")
    schema = root
    for _ in range(32):
        pointer = schema.get("$ref")
        if not isinstance(pointer, str):
            break
        found = resolve(pointer, root)
        schema = found if isinstance(found, dict) else {}
    if schema.get("type", "object") != "object":
        raise SchemaError(f"parameters are of type {schema['type']!r}, not an object")
    beyond = sorted(set(schema) - ANNOTATIONS - _ENFORCED)
    if strict and beyond:
        raise SchemaError(f"{beyond[0]} is not supported at the top of strict parameters")
    return schema


def _writable(name: str, needed: bool) -> bool:
    if PARAMETER_NAME.fullmatch(name):
        return True
    if needed:
        raise SchemaError(f"a parameter named {name!r:.100} cannot be written in a call")
    return False


def _json(schema: dict[str, Any], *, strict: bool) -> str:
    return json.dumps(with_options(schema, strict=strict, spaces=None), ensure_ascii=False)
