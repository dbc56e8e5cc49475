"""What a request wants its answer to look like, in the words of OpenAI, vLLM and SGLang.

All of them say one of five things; a request may say one of them once.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from api.errors import ApiError, invalid, unsupported

MAX_TEXT_CHARACTERS = {"regex": 4096, "grammar": 16 * 2**10}
"""A regex or grammar can ask for far more work than a schema of its size."""
MAX_CHOICES = 1000

Kind = Literal["json_schema", "regex", "choice", "grammar"]


class JsonSchemaParam(msgspec.Struct, frozen=True):
    """OpenAI's wrapper of a schema."""

    name: str = ""
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaParam | None = None


class StructuredOutputs(msgspec.Struct, frozen=True):
    """vLLM's extension; exactly one of these is given."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class AnswerFormat(msgspec.Struct, frozen=True):
    """What the visible answer must be."""

    kind: Kind
    value: Any
    """The schema, the text of the regex or grammar, or the list of choices."""
    param: str
    """The field that said so."""
    strict: bool = True
    """Every keyword of the schema is enforced, or the request refused; otherwise those that cannot
    be enforced are ignored."""
    in_prompt: bool = False
    """The model is shown the schema, too."""


def read_response_format(format_: ResponseFormat | None) -> AnswerFormat | None:
    """Returns what OpenAI's `response_format` asks for. Raises ApiError(400)."""
    if format_ is None or format_.type == "text":
        return None
    if format_.type == "json_object":
        return any_object("response_format")
    if format_.type == "structural_tag":
        raise unsupported("response_format", "response_format of type 'structural_tag'")
    wrapper = format_.json_schema
    if wrapper is None or wrapper.schema is None:
        missing = "response_format.json_schema" + ("" if wrapper is None else ".schema")
        raise invalid("A response_format of type 'json_schema' needs a schema.", missing)
    strict = bool(wrapper.strict)
    return AnswerFormat(
        "json_schema", wrapper.schema, "response_format.json_schema.schema", strict, not strict
    )


def read_structured_outputs(outputs: StructuredOutputs | None) -> list[AnswerFormat]:
    """Returns what vLLM's `structured_outputs` asks for. Raises ApiError(400)."""
    if outputs is None:
        return []
    fields = {
        f"structured_outputs.{name}": getattr(outputs, name) for name in outputs.__struct_fields__
    }
    return read_named(fields)


def read_named(fields: dict[str, Any]) -> list[AnswerFormat]:
    """Returns what fields ask for whose names end in json, json_object, regex, choice, grammar or
    ebnf; None asks for nothing. Raises ApiError(400)."""
    formats = []
    for param, value in fields.items():
        if value is None or value is False:
            continue
        name = param.replace(".", "_").split("guided_")[-1].split("structured_outputs_")[-1]
        if name == "json_object":
            formats.append(any_object(param))
        elif name == "json":
            formats.append(AnswerFormat("json_schema", _schema(value, param), param))
        elif name == "choice":
            formats.append(AnswerFormat("choice", _choices(value, param), param))
        else:
            kind: Kind = "regex" if name == "regex" else "grammar"
            formats.append(AnswerFormat(kind, _text(value, kind, param), param))
    return formats


def only_one(formats: list[AnswerFormat]) -> AnswerFormat | None:
    """Returns the one format that was asked for, None for none. Raises ApiError(400) for two."""
    if len(formats) > 1:
        raise invalid(f"{formats[1].param} contradicts {formats[0].param}.", formats[1].param)
    return formats[0] if formats else None


def any_object(param: str) -> AnswerFormat:
    """Returns the format of any JSON object."""
    return AnswerFormat("json_schema", {"type": "object"}, param)


def _schema(value: Any, param: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise invalid(f"{param} is not a JSON schema: {error}.", param) from error


def _choices(value: list[str], param: str) -> list[str]:
    if not 1 <= len(value) <= MAX_CHOICES:
        raise invalid(f"{param} has {len(value)} entries; it must have 1 to {MAX_CHOICES}.", param)
    if "" in value:
        raise invalid(f"An entry of {param} must not be empty.", param)
    if sum(map(len, value)) > 64 * 2**10:
        raise invalid(f"The entries of {param} have more than 65,536 characters.", param)
    return value


def _text(value: str, kind: Kind, param: str) -> str:
    limit = MAX_TEXT_CHARACTERS[kind]
    if not 1 <= len(value) <= limit:
        raise _length(param, len(value), limit)
    return value


def _length(param: str, found: int, limit: int) -> ApiError:
    return invalid(f"{param} has {found} characters; it must have 1 to {limit}.", param)
