"""The tools of a request: what goes into the prompt, and what the model may do with them."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from api.errors import invalid, unsupported

MAX_TOOLS = 128
FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ToolChoice(msgspec.Struct, frozen=True):
    """What the model may do with the tools."""

    mode: Literal["none", "auto", "required"]
    names: tuple[str, ...] = ()
    """The functions it may call; none: all."""


class CallDemand(msgspec.Struct, frozen=True):
    """What is demanded of the calls in an answer."""

    functions: list[dict[str, Any]]
    """Those that may be called, as the request defines them."""
    params: list[str]
    """Where the request has their parameters."""
    required: bool
    """The answer is calls; otherwise it may be anything until a call begins."""
    one_call: bool
    restricted: bool
    """Not every call that the model could write is right."""


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
    if not isinstance(function.get("strict"), bool | None):
        raise invalid("strict must be true or false.", f"{path}.function.strict", "invalid_type")
    return function


def read_tool_choice(
    choice: str | dict[str, Any] | None, functions: list[dict[str, Any]]
) -> ToolChoice:
    """Returns what the model may do with the functions. Raises ApiError(400) for unknown ones."""
    if isinstance(choice, dict):
        return _chosen(choice, [function["name"] for function in functions])
    if choice is None or choice == "auto":
        return ToolChoice("auto")
    if choice == "none":
        return ToolChoice("none")
    if choice != "required":
        raise invalid(
            f"tool_choice must be 'none', 'auto', 'required' or an object, not {choice!r}.",
            "tool_choice",
        )
    if not functions:
        raise invalid("tool_choice 'required' needs tools.", "tool_choice")
    return ToolChoice("required")


def call_demand(
    choice: ToolChoice, functions: list[dict[str, Any]], *, one_call: bool
) -> CallDemand | None:
    """Returns what is demanded of the calls; None when there may be none."""
    chosen = [
        (function, f"tools[{index}].function.parameters")
        for index, function in enumerate(functions)
        if not choice.names or function["name"] in choice.names
    ]
    if choice.mode == "none" or not chosen:
        return None
    return CallDemand(
        functions=[function for function, _ in chosen],
        params=[param for _, param in chosen],
        required=choice.mode == "required",
        one_call=one_call,
        restricted=len(chosen) < len(functions) or any(f.get("strict") for f, _ in chosen),
    )


def _chosen(choice: dict[str, Any], known: list[str]) -> ToolChoice:
    kind = choice.get("type")
    if kind == "custom":
        raise unsupported("tool_choice", "tool_choice of type 'custom'")
    if kind == "function":
        return ToolChoice("required", (_name(choice, known, "tool_choice"),))
    if kind != "allowed_tools":
        raise invalid(f"Unknown tool_choice type {kind!r}.", "tool_choice.type")
    # The Responses API has the same fields one level higher.
    allowed, path = choice.get("allowed_tools"), "tool_choice.allowed_tools"
    if allowed is None:
        allowed, path = choice, "tool_choice"
    if not isinstance(allowed, dict):
        raise invalid("allowed_tools must be an object.", path, "invalid_type")
    mode, tools = allowed.get("mode", "auto"), allowed.get("tools")
    if mode not in ("auto", "required"):
        raise invalid(f"mode must be 'auto' or 'required', not {mode!r}.", f"{path}.mode")
    if not isinstance(tools, list) or not tools:
        raise invalid("allowed_tools needs a list of tools.", f"{path}.tools")
    names = [_name(tool, known, f"{path}.tools[{index}]") for index, tool in enumerate(tools)]
    return ToolChoice(mode, tuple(dict.fromkeys(names)))


def _name(tool: Any, known: list[str], path: str) -> str:
    """The function that `{type, function: {name}}` means; `{type, name}` is the same."""
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise invalid("Only function tools can be chosen.", f"{path}.type")
    function = tool.get("function")
    if function is None:
        function, name_path = tool, f"{path}.name"
    else:
        name_path = f"{path}.function.name"
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or name not in known:
        raise invalid(f"There is no function {name!r} among the tools.", name_path)
    return name
