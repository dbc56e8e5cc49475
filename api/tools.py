"""The tools of a request: what goes into the prompt, and what the model may do with them."""

from __future__ import annotations

import re
from typing import Any, Literal

from api.errors import ApiError, invalid, unsupported

MAX_TOOLS = 128
FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

ToolChoice = Literal["none", "auto"]


def read_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Returns the inner `function` objects, untouched: their JSON, key order included, is prompt.

    Raises ApiError(400) naming `tools[i]`.
    """
    tools = tools or []
    if len(tools) > MAX_TOOLS:
        raise invalid(f"{len(tools)} tools were given; the limit is {MAX_TOOLS}.", "tools")
    functions = [_function(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    names: set[str] = set()
    for index, function in enumerate(functions):
        if function["name"] in names:
            raise invalid(
                f"The function {function['name']!r} is defined twice.",
                f"tools[{index}].function.name",
            )
        names.add(function["name"])
    return functions


def _function(tool: dict[str, Any], path: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind == "custom":
        raise unsupported(f"{path}.type", "A custom tool")
    if kind != "function":
        raise invalid(f"A tool must be of type 'function', not {kind!r}.", f"{path}.type")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise invalid("A function tool needs a function object.", f"{path}.function")
    name = function.get("name")
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise invalid(
            "A function name has 1 to 64 characters out of letters, digits, '_' and '-'; "
            f"found {name!r}.",
            f"{path}.function.name",
        )
    for field, type_, what in (("description", str, "a string"), ("parameters", dict, "an object")):
        value = function.get(field)
        if value is not None and not isinstance(value, type_):
            raise invalid(f"{field} must be {what}.", f"{path}.function.{field}", "invalid_type")
    if function.get("strict"):
        raise unsupported(f"{path}.function.strict", "A function with strict arguments")
    return function


def read_tool_choice(choice: str | dict[str, Any] | None) -> ToolChoice:
    """Returns what the model may do. Raises ApiError(400) for choices that force a call."""
    if choice is None or choice == "auto":
        return "auto"
    if choice == "none":
        return "none"
    if choice == "required":
        raise _forced("tool_choice 'required'")
    if isinstance(choice, str):
        raise invalid(
            f"tool_choice must be 'none', 'auto', 'required' or an object, not {choice!r}.",
            "tool_choice",
        )
    if choice.get("type") in ("function", "custom", "allowed_tools"):
        raise _forced(f"tool_choice of type {choice['type']!r}")
    raise invalid(f"Unknown tool_choice type {choice.get('type')!r}.", "tool_choice.type")


def _forced(what: str) -> ApiError:
    return unsupported("tool_choice", what)
