import pytest

from api.chat.markers import ASSISTANT, BOS, DSML, EOS, USER
from api.chat.messages import Message, PromptError, ToolCall
from api.chat.rendering import render
from api.chat.template import Template

TEMPLATE = Template("TOOLS\n{tool_schemas}\nEND\n", "FORMAT\n{schema}")


def text(messages: list[Message], thinking: bool, **blocks: object) -> str:
    segments = render(messages, TEMPLATE, thinking=thinking, **blocks)  # type: ignore[arg-type]
    return "".join(segment.text for segment in segments)


GREETING = [
    Message("user", "hello"),
    Message("assistant", "Hello! I am DeepSeek.", reasoning="thinking..."),
    Message("user", "1+1=?"),
]

GET_DATE = Message("assistant", reasoning="R1", tool_calls=(ToolCall("a", "get_date", "{}"),))
STEP_1 = [Message("system", "SYS"), Message("user", "Q1")]
STEP_2 = [*STEP_1, GET_DATE, Message("tool", "2025-12-01", tool_call_id="a")]
NEXT_TURN = [*STEP_2, Message("assistant", "ANS1", reasoning="R2"), Message("user", "Q2")]

CALLS = (
    f'\n\n<{DSML}function_calls>\n<{DSML}invoke name="get_date">\n\n</{DSML}invoke>\n'
    f"</{DSML}function_calls>{EOS}"
)
RESULTS = "\n\n<function_results>\n<result>2025-12-01</result>\n</function_results>\n\n"


def test_golden_greeting() -> None:
    assert text(GREETING, True) == (
        f"{BOS}{USER}hello{ASSISTANT}</think>Hello! I am DeepSeek.{EOS}"
        f"{USER}1+1=?{ASSISTANT}<think>"
    )


def test_golden_tool_loop() -> None:
    step_1 = f"{BOS}SYS{USER}Q1{ASSISTANT}<think>"
    assert text(STEP_1, True) == step_1
    assert text(STEP_2, True) == f"{step_1}R1</think>{CALLS}{RESULTS}<think>"
    assert text(NEXT_TURN, True) == (
        f"{BOS}SYS{USER}Q1{ASSISTANT}</think>{CALLS}{RESULTS}</think>ANS1{EOS}"
        f"{USER}Q2{ASSISTANT}<think>"
    )


@pytest.mark.parametrize("messages", [GREETING, NEXT_TURN])
def test_dropped_thinking_is_chat_mode_but_for_the_last_token(messages: list[Message]) -> None:
    assert text(messages, True).removesuffix("<think>") == text(messages, False).removesuffix(
        "</think>"
    )


def test_arguments_become_parameters() -> None:
    arguments = '{"city": "Pa\\"ris\\n<b>", "days": 2, "n": null, "o": {"a":[1,"é"]}, "b": true}'
    message = Message("assistant", "Sure.", tool_calls=(ToolCall("a", "f", arguments),) * 2)
    invoke = (
        f'<{DSML}invoke name="f">\n'
        f'<{DSML}parameter name="city" string="true">Pa"ris\n<b></{DSML}parameter>\n'
        f'<{DSML}parameter name="days" string="false">2</{DSML}parameter>\n'
        f'<{DSML}parameter name="n" string="false">null</{DSML}parameter>\n'
        f'<{DSML}parameter name="o" string="false">{{"a": [1, "é"]}}</{DSML}parameter>\n'
        f'<{DSML}parameter name="b" string="false">true</{DSML}parameter>\n'
        f"</{DSML}invoke>\n"
    )
    assert text([Message("user", "Q"), message], False) == (
        f"{BOS}{USER}Q{ASSISTANT}</think>Sure.\n\n<{DSML}function_calls>\n{invoke}{invoke}"
        f"</{DSML}function_calls>{EOS}"
    )


def test_two_results_share_one_group() -> None:
    messages = [
        Message("user", "Q"),
        Message("assistant", tool_calls=(ToolCall("a", "f", "{}"), ToolCall("b", "f", "{}"))),
        Message("tool", "1", tool_call_id="a"),
        Message("tool", "", tool_call_id="b"),
    ]
    assert text(messages, False).endswith(
        f"{EOS}\n\n<function_results>\n<result>1</result>\n<result></result>\n"
        "</function_results>\n\n</think>"
    )


def test_missing_reasoning_of_a_running_call_is_an_empty_pair() -> None:
    call = Message("assistant", tool_calls=(ToolCall("a", "get_date", "{}"),))
    messages = [Message("user", "Q"), call, Message("tool", "2025-12-01", tool_call_id="a")]
    assert text(messages, True) == (
        f"{BOS}{USER}Q{ASSISTANT}<think></think>{CALLS}{RESULTS}<think>"
    )


def test_training_target_ends_in_eos() -> None:
    messages = [Message("user", "Q"), Message("assistant", "A", reasoning="R")]
    assert text(messages, True) == f"{BOS}{USER}Q{ASSISTANT}<think>R</think>A{EOS}"
    assert text(messages, False) == f"{BOS}{USER}Q{ASSISTANT}</think>A{EOS}"


def test_blocks_end_the_system_message() -> None:
    tools = [{"name": "f"}]
    user = Message("user", "Q")
    block = '\n\nTOOLS\n{"name": "f"}\nEND\n'
    end = f"{USER}Q{ASSISTANT}</think>"
    assert text([user], False, tools=tools) == f"{BOS}{block}{end}"
    assert text([Message("system", "S"), user], False, tools=tools) == f"{BOS}S{block}{end}"
    assert (
        text([Message("system", "S"), user], False, tools=tools, response_schema={"a": 1})
        == f'{BOS}S{block}\n\nFORMAT\n{{"a": 1}}{end}'
    )
    assert text([user], False, tools=[]) == f"{BOS}{end}"


def test_kinds_of_a_running_tool_turn() -> None:
    kinds: dict[str, str] = {}
    for segment in render(STEP_2, TEMPLATE, thinking=True):
        kinds[segment.text] = segment.kind
    assert kinds["SYS"] == kinds["Q1"] == kinds[ASSISTANT] == "stable"
    assert kinds["R1"] == kinds["</think>"] == kinds["<think>"] == "reasoning"
    assert kinds["2025-12-01"] == kinds[EOS] == "tool"
    answer = render([*STEP_1, Message("assistant", "ANS", reasoning="R")], TEMPLATE, thinking=True)
    assert [(s.text, s.kind) for s in answer[-2:]] == [("ANS", "answer"), (EOS, "answer")]


@pytest.mark.parametrize("messages", [GREETING, STEP_2, NEXT_TURN])
def test_everything_is_stable_in_chat_mode(messages: list[Message]) -> None:
    assert {segment.kind for segment in render(messages, TEMPLATE, thinking=False)} == {"stable"}


def test_unrenderable_histories() -> None:
    user = Message("user", "Q")
    with pytest.raises(PromptError) as error:
        text([user, Message("system", "S")], False)
    assert error.value.param == "messages[1].role"
    call = ToolCall("a", "f", "[]")
    with pytest.raises(PromptError) as error:
        text([user, Message("assistant", tool_calls=(call,))], False)
    assert error.value.param == "messages[1].tool_calls[0].function.arguments"
