from __future__ import annotations

from typing import Any

import pytest

from api.errors import ApiError
from api.tools import ToolChoice, call_demand, read_tool_choice, read_tools

PLACE: dict[str, Any] = {"name": "place", "parameters": {"type": "object"}}
STOP: dict[str, Any] = {"name": "stop", "strict": True}


def named(name: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(*names: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": "allowed_tools",
        "allowed_tools": {"tools": [named(n) for n in names], **fields},
    }


@pytest.mark.parametrize(
    ("choice", "read"),
    [
        (None, ToolChoice("auto")),
        ("auto", ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        (named("place"), ToolChoice("required", ("place",))),
        ({"type": "function", "name": "stop"}, ToolChoice("required", ("stop",))),
        (allowed("place", "place"), ToolChoice("auto", ("place",))),
        (allowed("place", "stop", mode="required"), ToolChoice("required", ("place", "stop"))),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [named("stop")]},
            ToolChoice("required", ("stop",)),
        ),
    ],
)
def test_every_form_of_a_choice_is_read(choice: Any, read: ToolChoice) -> None:
    assert read_tool_choice(choice, [PLACE, STOP]) == read


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ("perhaps", "tool_choice"),
        ({"type": "perhaps"}, "tool_choice.type"),
        ({}, "tool_choice.type"),
        (named("other"), "tool_choice.function.name"),
        (named(3), "tool_choice.function.name"),
        ({"type": "function"}, "tool_choice.name"),
        ({"type": "function", "function": "place"}, "tool_choice.function.name"),
        ({"type": "custom", "custom": {"name": "place"}}, "tool_choice"),
        ({"type": "allowed_tools", "allowed_tools": 3}, "tool_choice.allowed_tools"),
        (allowed(), "tool_choice.allowed_tools.tools"),
        (allowed("place", mode="never"), "tool_choice.allowed_tools.mode"),
        (allowed("place", "other"), "tool_choice.allowed_tools.tools[1].function.name"),
        (
            {"type": "allowed_tools", "allowed_tools": {"tools": [{"type": "custom"}]}},
            "tool_choice.allowed_tools.tools[0].type",
        ),
    ],
)
def test_a_wrong_choice_is_refused_by_name(choice: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_tool_choice(choice, [PLACE, STOP])
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_call_cannot_be_forced_without_tools() -> None:
    assert read_tool_choice("auto", []) == ToolChoice("auto")
    for choice in ("required", named("place")):
        with pytest.raises(ApiError):
            read_tool_choice(choice, [])


def test_what_is_demanded_of_calls() -> None:
    functions = [PLACE, STOP]
    assert call_demand(ToolChoice("none"), functions, one_call=False) is None
    assert call_demand(ToolChoice("auto"), [], one_call=False) is None
    free = call_demand(ToolChoice("auto"), [PLACE], one_call=True)
    assert free is not None
    assert (free.required, free.restricted, free.one_call) == (False, False, True)
    strict = call_demand(ToolChoice("auto"), functions, one_call=False)
    assert strict is not None and strict.restricted and not strict.required
    chosen = call_demand(ToolChoice("required", ("stop",)), functions, one_call=False)
    assert chosen is not None and chosen.required
    assert (chosen.functions, chosen.params) == ([STOP], ["tools[1].function.parameters"])
    fewer = call_demand(ToolChoice("auto", ("place",)), functions, one_call=False)
    assert fewer is not None and fewer.restricted


def test_strict_is_a_switch() -> None:
    (function,) = read_tools([{"type": "function", "function": STOP}])
    assert function is STOP
    with pytest.raises(ApiError) as caught:
        read_tools([{"type": "function", "function": {**STOP, "strict": "yes"}}])
    assert caught.value.param == "tools[0].function.strict"
