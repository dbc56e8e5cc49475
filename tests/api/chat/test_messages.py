import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.chat.messages import (
    Message,
    PromptError,
    ToolCall,
    check_history,
    lift_inline_reasoning,
    normalise_history,
    parse_arguments,
)


def call(call_id: str, arguments: str = "{}", name: str = "get_date") -> ToolCall:
    return ToolCall(call_id, name, arguments)


def assistant(*calls: ToolCall, content: str = "", reasoning: str | None = None) -> Message:
    return Message("assistant", content, reasoning=reasoning, tool_calls=calls)


def result(call_id: str | None, content: str = "ok") -> Message:
    return Message("tool", content, tool_call_id=call_id)


USER = Message("user", "Q")
SYSTEM = Message("system", "S")

MALFORMED: dict[str, tuple[list[Message], str]] = {
    "nothing": ([], "messages"),
    "only a system message": ([SYSTEM], "messages[0].role"),
    "later system message": ([USER, SYSTEM, USER], "messages[1].role"),
    "ends with the assistant": ([USER, assistant(content="A", reasoning="R")], "messages[1].role"),
    "ends with calls": ([USER, assistant(call("a"))], "messages[1].tool_calls"),
    "result after a user message": ([USER, result("a")], "messages[1].role"),
    "result first": ([result("a"), USER], "messages[0].role"),
    "result after an answer": (
        [USER, assistant(content="A", reasoning=""), result("a")],
        "messages[2].role",
    ),
    "fewer results than calls": (
        [USER, assistant(call("a"), call("b")), result("a")],
        "messages[1].tool_calls",
    ),
    "calls, then a user message": ([USER, assistant(call("a")), USER], "messages[1].tool_calls"),
    "more results than calls": (
        [USER, assistant(call("a")), result("a"), result("b")],
        "messages[3].tool_call_id",
    ),
    "unknown call id": ([USER, assistant(call("a")), result("x")], "messages[2].tool_call_id"),
    "result twice": (
        [USER, assistant(call("a"), call("b")), result("a"), result("a")],
        "messages[3].tool_call_id",
    ),
    "result without an id": (
        [USER, assistant(call("a")), result(None)],
        "messages[2].tool_call_id",
    ),
    "call id twice": (
        [USER, assistant(call("a"), call("a")), result("a")],
        "messages[1].tool_calls[1].id",
    ),
    "call without an id": (
        [USER, assistant(call("")), result("")],
        "messages[1].tool_calls[0].id",
    ),
    "call without a name": (
        [USER, assistant(call("a", name="")), result("a")],
        "messages[1].tool_calls[0].function.name",
    ),
    "a name that ends its own markup": (
        [USER, assistant(call("a", name='f">x<')), result("a")],
        "messages[1].tool_calls[0].function.name",
    ),
    "arguments are not JSON": (
        [USER, assistant(call("a", "{")), result("a")],
        "messages[1].tool_calls[0].function.arguments",
    ),
    "arguments are an array": (
        [USER, assistant(call("a"), call("b", "[1]")), result("a"), result("b")],
        "messages[1].tool_calls[1].function.arguments",
    ),
    "arguments with NaN": (
        [USER, assistant(call("a", '{"x": NaN}')), result("a")],
        "messages[1].tool_calls[0].function.arguments",
    ),
    "arguments nested too deeply": (
        [USER, assistant(call("a", '{"x": ' + "[" * 100_000)), result("a")],
        "messages[1].tool_calls[0].function.arguments",
    ),
    "arguments with half a character": (
        [USER, assistant(call("a", '{"x": "\\ud83d"}')), result("a")],
        "messages[1].tool_calls[0].function.arguments",
    ),
    "content with half a character": ([Message("user", "\ud83d")], "messages[0].content"),
    "calls of a user": (
        [Message("user", "Q", tool_calls=(call("a"),))],
        "messages[0].tool_calls",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("thinking", [False, True])
def test_malformed_history_names_its_message(name: str, thinking: bool) -> None:
    messages, param = MALFORMED[name]
    with pytest.raises(PromptError) as error:
        check_history(messages, thinking)
    assert error.value.param == param
    assert error.value.message


def test_indexes_are_those_of_the_request() -> None:
    """Joining system messages must not shift the index a client is told."""
    messages = [SYSTEM, SYSTEM, USER, assistant(call("a")), result("x")]
    for check in (normalise_history, lambda given: check_history(given, True)):
        with pytest.raises(PromptError) as error:
            check(messages)
        assert error.value.param == "messages[4].tool_call_id"


def test_current_answer_without_reasoning_is_refused_in_thinking_mode() -> None:
    messages = [USER, assistant(content="A"), assistant(call("a")), result("a")]
    check_history(messages, thinking=False)
    with pytest.raises(PromptError) as error:
        check_history(messages, thinking=True)
    assert error.value.param == "messages[1].reasoning_content"
    inline = [USER, assistant(content="<think>R</think>A"), assistant(call("a")), result("a")]
    check_history(inline, thinking=True)
    check_history([*messages, USER], thinking=True)


@pytest.mark.parametrize("thinking", [False, True])
def test_good_histories_pass(thinking: bool) -> None:
    check_history([USER], thinking)
    check_history([SYSTEM, SYSTEM, USER, assistant(content="A"), USER], thinking)
    check_history([Message("assistant", "Hello, how can I help?"), USER], thinking)
    check_history([USER, assistant(call("a")), result("a")], thinking)
    check_history(
        [USER, assistant(call("a")), result("a"), assistant(call("a")), result("a")], thinking
    )


def test_leading_system_messages_are_joined() -> None:
    messages = [Message("system", "one"), Message("system", "two"), USER]
    assert normalise_history(messages) == [Message("system", "one\n\ntwo"), USER]


@given(st.permutations(["a", "b", "c", "d"]))
def test_results_are_put_in_call_order(order: list[str]) -> None:
    calls = assistant(*(call(call_id) for call_id in "abcd"))
    messages = [USER, calls, *(result(call_id, f"result {call_id}") for call_id in order), USER]
    normalised = normalise_history(messages)
    assert [message.tool_call_id for message in normalised[2:6]] == list("abcd")
    assert sorted(map(repr, normalised)) == sorted(map(repr, messages))


def test_unanswered_calls_may_end_a_training_target() -> None:
    messages = [USER, assistant(call("a"))]
    assert normalise_history(messages) == messages


@pytest.mark.parametrize(
    ("content", "reasoning", "expected"),
    [
        ("<think>R</think>A", None, ("R", "A")),
        ("<think>\nR\n</think>\n\nA", None, ("R", "A")),
        ("<think>R</think>\n\nA", None, ("R", "\n\nA")),
        ("<think></think>A", None, ("", "A")),
        ("<think>R</think>A", " ", ("R", "A")),
        ("<think>R</think>A", "R", ("R", "A")),
        ("<think>R</think>A", "other", ("other", "<think>R</think>A")),
        ("<think>R", None, (None, "<think>R")),
        ("A <think>R</think>", None, (None, "A <think>R</think>")),
        ("<think>R</think>A</think>B", None, ("R", "A</think>B")),
    ],
)
def test_inline_reasoning(
    content: str, reasoning: str | None, expected: tuple[str | None, str]
) -> None:
    lifted = lift_inline_reasoning(assistant(content=content, reasoning=reasoning))
    assert (lifted.reasoning, lifted.content) == expected


def test_only_the_assistant_reasons() -> None:
    message = Message("user", "<think>R</think>A")
    assert lift_inline_reasoning(message) == message


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()))
def test_arguments_keep_values_and_order(value: dict[str, object]) -> None:
    dump: Callable[..., str] = json.dumps
    parsed = parse_arguments(dump(value, ensure_ascii=False))
    assert list(parsed.items()) == list(value.items())
