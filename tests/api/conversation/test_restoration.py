"""Tool loops of clients that lose reasoning: restored token by token, for whom it belongs to."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import msgspec
import pytest

from api.anthropic.request import read_messages_request
from api.config import ChatConfig
from api.errors import ApiError
from api.service import ChatService
from engine.client import GenerationDefaults
from tests.api.scripted_engine import MODEL, Scripted, body

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("find", "add")
]
USER = {"role": "user", "content": "Where is it?"}
FIND = (
    '<｜DSML｜invoke name="find">\n<｜DSML｜parameter name="what" string="true">key'
    "</｜DSML｜parameter>\n</｜DSML｜invoke>\n"
)
ADD = (
    '<｜DSML｜invoke name="add">\n<｜DSML｜parameter name="a" string="false">1e5'
    "</｜DSML｜parameter>\n</｜DSML｜invoke>\n"
)
TEXT = f"\n\n<｜DSML｜function_calls>\n{FIND}{ADD}</｜DSML｜function_calls>"
"""1e5 comes back as 100000.0 when it is rendered again."""


def say(scripted: Scripted, reasoning: str, rest: str = TEXT) -> list[int]:
    """Makes the model say this, the reasoning letter by letter: no tokenizer would write it so."""
    letters = [t for letter in reasoning for t in scripted.encoder.encode_text(letter)]
    thought = [*letters, scripted.encoder.think_end_token_id] if reasoning else []
    tokens = [*thought, *scripted.tokens(rest)]
    scripted.engine.script = lambda submit, choice: tokens
    return tokens


def configure(scripted: Scripted, **config: Any) -> None:
    defaults, chat = GenerationDefaults(), ChatConfig(**config)
    scripted.service = ChatService(scripted.engine, scripted.encoder, (MODEL,), defaults, chat)  # type: ignore[arg-type]


def ask(scripted: Scripted, messages: list[Any], **fields: Any) -> dict[str, Any]:
    fields = {"tools": TOOLS, "thinking": {"type": "enabled"}} | fields
    return asyncio.run(scripted.complete(messages=messages, **fields))


def step(scripted: Scripted, messages: list[Any], reasoning: str, **fields: Any) -> dict[str, Any]:
    """Appends the model's calls and their results in reverse order; returns the answer."""
    say(scripted, reasoning)
    answer = ask(scripted, messages, **fields)
    said = answer["choices"][0]["message"]
    messages.append(said)
    for call in reversed(said["tool_calls"]):
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": "no"})
    return answer


def without_reasoning(messages: list[Any]) -> list[Any]:
    dropped = copy.deepcopy(messages)
    for message in dropped:
        message.pop("reasoning_content", None)
    return dropped


def prompt_of(scripted: Scripted, messages: list[Any], **fields: Any) -> list[int]:
    """The token ids that these messages make."""
    ask(scripted, messages, **fields)
    return scripted.engine.submits[-1].token_ids


def restored(answer: dict[str, Any]) -> int | None:
    found: int | None = answer["usage"]["prompt_tokens_details"].get("restored_reasoning_tokens")
    return found


def test_three_steps_without_reasoning_make_the_same_tokens(scripted: Scripted) -> None:
    messages: list[Any] = [USER]
    told, expected_restored = 0, []
    for reasoning in ("let me look", "and again", "once more"):
        answer = step(scripted, messages, reasoning)
        submit = scripted.engine.submits[-1]
        expected_restored.append(restored(answer))
        told = len(reasoning)
        sequence = submit.token_ids + scripted.engine.script(submit, 0)
        echoed = prompt_of(scripted, messages)
        assert echoed[: len(sequence)] == sequence, "what was sent and said is a prefix"
        lost = ask(scripted, without_reasoning(messages))
        assert scripted.engine.submits[-1].token_ids == echoed
        assert restored(lost) == sum(
            len(m["reasoning_content"]) for m in messages if "reasoning_content" in m
        )
    assert expected_restored == [None] * 3, "nothing is restored that was not lost"
    assert told


def test_the_stream_says_how_much_was_restored(scripted: Scripted) -> None:
    messages: list[Any] = [USER]
    step(scripted, messages, "hm")
    fields: Any = {"tools": TOOLS, "thinking": {"type": "enabled"}}
    fields["stream_options"] = {"include_usage": True}
    chunks = asyncio.run(scripted.stream(messages=without_reasoning(messages), **fields))
    assert chunks[-1]["usage"]["prompt_tokens_details"]["restored_reasoning_tokens"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_streamed_turns_are_remembered_too(scripted: Scripted, stream: bool) -> None:
    tokens = say(scripted, "hm")
    fields: Any = {"tools": TOOLS, "thinking": {"type": "enabled"}}
    run = scripted.stream if stream else scripted.complete
    asyncio.run(run(messages=[USER], **fields))
    assert scripted.service.conversations.store.counts.turns == 1
    assert tokens[-1] == scripted.encoder.eos_token_id


@pytest.mark.parametrize("blank", [None, "", " "])
def test_a_blank_is_not_the_clients_own_reasoning(scripted: Scripted, blank: str | None) -> None:
    messages: list[Any] = [USER]
    step(scripted, messages, "hm")
    echoed = prompt_of(scripted, messages)
    messages[1] = messages[1] | {"reasoning_content": blank}
    assert prompt_of(scripted, messages) == echoed


def test_the_clients_own_reasoning_wins(scripted: Scripted) -> None:
    messages: list[Any] = [USER]
    step(scripted, messages, "hm")
    messages[1] = messages[1] | {"reasoning_content": "aha"}
    prompt = prompt_of(scripted, messages)
    assert "aha</think>" in scripted.service.decode(prompt)
    # What it did not change is still exact.
    assert "1e5" in scripted.service.decode(prompt)


def test_inline_reasoning_is_the_same_reasoning(scripted: Scripted) -> None:
    messages: list[Any] = [USER]
    step(scripted, messages, "hm")
    echoed = prompt_of(scripted, messages)
    inline = without_reasoning(messages)
    inline[1]["content"] = "<think>\nhm\n</think>\n"
    assert prompt_of(scripted, inline) == echoed


@pytest.mark.parametrize("policy", ["empty", "error", "restore"])
@pytest.mark.parametrize("by_request", [False, True])
def test_policies(scripted: Scripted, policy: str, by_request: bool) -> None:
    fields: dict[str, Any] = {}
    if by_request:
        configure(scripted, missing_reasoning="error" if policy == "restore" else "restore")
        fields["missing_reasoning"] = policy
    else:
        configure(scripted, missing_reasoning=policy)
    messages: list[Any] = [USER]
    step(scripted, messages, "hm", **fields)
    lost = without_reasoning(messages)
    if policy == "error":
        with pytest.raises(ApiError) as caught:
            ask(scripted, lost, **fields)
        error = caught.value
        assert (error.status, error.param) == (400, "messages[1].reasoning_content")
        assert error.code == "missing_reasoning_content" and "index 1" in error.message
        # Acknowledged as absent it is no error, and is restored.
        lost[1]["reasoning_content"] = ""
        assert restored(ask(scripted, lost, **fields)) == 2
        # Outside the running turn nobody asks for it.
        ask(scripted, [*without_reasoning(messages), USER], **fields)
        ask(scripted, without_reasoning(messages), **fields, thinking={"type": "disabled"})
        return
    answer = ask(scripted, lost, **fields)
    text = scripted.service.decode(scripted.engine.submits[-1].token_ids)
    assert ("<think>hm</think>" in text) == (policy == "restore")
    assert ("<think></think>" in text) == (policy == "empty")
    assert restored(answer) == (2 if policy == "restore" else None)


def test_what_nobody_remembers_is_an_empty_thought(scripted: Scripted) -> None:
    call = {"id": "call_x", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    messages = [
        USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_x", "content": "no"},
    ]
    prompt = prompt_of(scripted, messages)
    assert "<think></think>" in scripted.service.decode(prompt)
    assert scripted.service.conversations.store.counts.missed_messages == 1


def test_nobody_gets_anothers_reasoning(scripted: Scripted) -> None:
    messages: list[Any] = [USER]
    step(scripted, messages, "hm", user_id="anna")
    lost = without_reasoning(messages)
    assert restored(ask(scripted, lost, user_id="bert")) is None
    assert restored(ask(scripted, lost)) is None
    assert restored(ask(scripted, lost, user_id="anna", cache_salt="other")) is None
    assert restored(ask(scripted, lost, user_id="anna")) == 2

    async def with_key(tenant: str) -> Any:
        fields: Any = {"tools": TOOLS, "thinking": {"type": "enabled"}, "user_id": "anna"}
        turn = await scripted.service.start(body(messages=lost, **fields), tenant=tenant)
        async with turn:
            return msgspec.to_builtins(await turn.completion())

    assert restored(asyncio.run(with_key("a-key"))) is None


def test_an_id_that_stands_twice_restores_nothing(scripted: Scripted) -> None:
    messages: list[Any] = [USER]
    step(scripted, messages, "hm")
    lost = without_reasoning(messages)
    assert restored(ask(scripted, [*lost, *lost[1:]])) is None


def test_chat_mode_restores_no_reasoning_but_keeps_the_tokens(scripted: Scripted) -> None:
    messages: list[Any] = [USER]
    step(scripted, messages, "hm")
    answer = ask(scripted, without_reasoning(messages), thinking={"type": "disabled"})
    text = scripted.service.decode(scripted.engine.submits[-1].token_ids)
    assert "hm" not in text and "<think>" not in text.split("<｜User｜>")[1]
    assert "1e5" in text and restored(answer) is None


def test_a_turn_of_chat_mode_is_spliced(scripted: Scripted) -> None:
    messages: list[Any] = [USER]
    step(scripted, messages, "", thinking={"type": "disabled"})
    submit = scripted.engine.submits[-1]
    sequence = submit.token_ids + scripted.engine.script(submit, 0)
    prompt = prompt_of(scripted, messages, thinking={"type": "disabled"})
    assert prompt[: len(sequence)] == sequence
    # Thinking switched on in between: an empty thought, then the same tokens.
    thinking = scripted.service.decode(prompt_of(scripted, messages))
    assert "<think></think>" in thinking and "1e5" in thinking


def test_changed_calls_are_rendered_and_their_reasoning_restored(scripted: Scripted) -> None:
    messages: list[Any] = [USER]
    step(scripted, messages, "hm")
    lost = without_reasoning(messages)
    lost[1]["tool_calls"][1]["function"]["arguments"] = '{"a": 7}'
    assert restored(ask(scripted, lost)) == 2
    text = scripted.service.decode(scripted.engine.submits[-1].token_ids)
    assert "hm</think>" in text and ">7<" in text and "1e5" not in text


def test_arguments_spelled_otherwise_are_the_same(scripted: Scripted) -> None:
    messages: list[Any] = [USER]
    step(scripted, messages, "hm")
    echoed = prompt_of(scripted, messages)
    for spelling in ('{"a":100000}', '{ "a" : 100000.0 }', '{"a": 1e5}'):
        messages[1]["tool_calls"][1]["function"]["arguments"] = spelling
        messages[1]["content"] = ""
        assert prompt_of(scripted, messages) == echoed


def test_the_next_user_message_drops_the_reasoning_and_keeps_the_tokens(
    scripted: Scripted,
) -> None:
    messages: list[Any] = [USER]
    step(scripted, messages, "hm")
    for history in (messages, without_reasoning(messages)):
        text = scripted.service.decode(prompt_of(scripted, [*history, USER]))
        assert "hm" not in text and text.count("1e5") == 1
        assert restored(ask(scripted, [*history, USER])) is None


def test_a_turn_cut_after_its_first_call_is_closed(scripted: Scripted) -> None:
    say(scripted, "hm")
    answer = ask(scripted, [USER], parallel_tool_calls=False)
    said = answer["choices"][0]["message"]
    (call,) = said["tool_calls"]
    kept = scripted.engine.submits[-1].token_ids
    kept = (
        kept
        + scripted.engine.script(scripted.engine.submits[-1], 0)[
            : answer["usage"]["completion_tokens"]
        ]
    )
    said.pop("reasoning_content")
    result = {"role": "tool", "tool_call_id": call["id"], "content": "no"}
    prompt = prompt_of(scripted, [USER, said, result])
    assert prompt[: len(kept)] == kept
    rest = scripted.service.decode(prompt[len(kept) :])
    assert rest.startswith(
        "</｜DSML｜function_calls><｜end▁of▁sentence｜>\n\n<function_results>"
    ) or (rest.startswith("\n</｜DSML｜function_calls><｜end▁of▁sentence｜>\n\n<function_results>"))


def test_each_of_several_choices_is_remembered(scripted: Scripted) -> None:
    tokens = {0: "one", 1: "three"}
    scripts = {choice: say(scripted, text) for choice, text in tokens.items()}
    scripted.engine.script = lambda submit, choice: scripts.get(choice, scripts[0])
    answer = ask(scripted, [USER], n=2)
    for choice, reasoning in zip(answer["choices"], tokens.values(), strict=True):
        said = choice["message"]
        said.pop("reasoning_content")
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": "no"}
            for call in said["tool_calls"]
        ]
        assert restored(ask(scripted, [USER, said, *results])) == len(reasoning)


def test_the_messages_api_finds_it_too(scripted: Scripted) -> None:
    messages: list[Any] = [USER]
    step(scripted, messages, "hm")
    echoed = prompt_of(scripted, messages)
    said = messages[1]
    uses = [
        {
            "type": "tool_use",
            "id": call["id"],
            "name": call["function"]["name"],
            "input": msgspec.json.decode(call["function"]["arguments"]),
        }
        for call in said["tool_calls"]
    ]
    results = [
        {"type": "tool_result", "tool_use_id": call["id"], "content": "no"}
        for call in said["tool_calls"]
    ]
    request = {
        "model": MODEL,
        "max_tokens": 50,
        "messages": [
            USER,
            {"role": "assistant", "content": uses},
            {"role": "user", "content": results},
        ],
        "tools": [
            {"name": tool["function"]["name"], "input_schema": {"type": "object"}}  # type: ignore[index]
            for tool in TOOLS
        ],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    found, prompt = scripted.service.prepare(msgspec.json.encode(request), read_messages_request)
    assert prompt.token_ids == echoed and found.restored_tokens == 2


@pytest.mark.parametrize("value", ["always", 7, True])
def test_a_bad_policy_is_refused_by_name(scripted: Scripted, value: Any) -> None:
    with pytest.raises(ApiError) as caught:
        ask(scripted, [USER], missing_reasoning=value)
    assert (caught.value.status, caught.value.param) == (400, "missing_reasoning")


@pytest.mark.parametrize("levels", [100, 400, 700, 900, 980])
def test_arguments_nested_very_deeply_under_a_known_id_are_no_failure(
    scripted: Scripted, levels: int
) -> None:
    """They are not what the model wrote, or too deep to be looked at: never a 500."""
    messages: list[Any] = [USER]
    step(scripted, messages, "hm")
    call = messages[1]["tool_calls"][0]["function"]
    call["arguments"] = '{"q": ' + "[" * levels + "]" * levels + "}"
    try:
        answer = ask(scripted, without_reasoning(messages))
    except ApiError as error:
        assert error.status == 400
    else:
        assert restored(answer) == 2
