"""What clients say: conversations as generators that are sent the model's answers.

    answer = yield Ask(...)

A script ends by returning, or by being closed when an answer did not come.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import msgspec

from loadtest.conversations import Conversation, Turn
from loadtest.live.answer import Answer
from loadtest.live.text import Texts
from loadtest.traces import BLOCK_TOKENS, TraceRequest

CALL_TOKENS = 160
"""Room for a tool call, whatever the scale: a shorter one would be cut in the middle."""
MARGIN_TOKENS = 64
"""For what a chat format adds around messages."""


class Ask(NamedTuple):
    """One request: what of its body differs from request to request."""

    body: dict[str, Any]
    pause_s: float = 0.0
    """The client waits so long before it sends: a user reads, a tool runs."""
    asks_call: bool = False


Script = Generator[Ask, Answer, None]


class Manner(msgspec.Struct, frozen=True, kw_only=True):
    """How a client talks, and what its server understands."""

    thinking: bool = False
    echo: bool = True
    """Sends the reasoning of a tool loop back, as DeepSeek's documentation asks; else drops it."""
    extensions: bool = False
    """The server takes `ignore_eos` and `thinking`: answers then have the lengths they should."""
    window_tokens: int = 1 << 17
    """Prompt and answer together."""

    def output(self, tokens: int, *, reasoning: int = 0, exact: bool = True) -> dict[str, Any]:
        """Returns the fields that bound an answer; exact: make it that long where that works."""
        fields: dict[str, Any] = {"max_tokens": max(1, tokens + reasoning)}
        if self.extensions:
            fields["thinking"] = {"type": "enabled" if self.thinking else "disabled"}
            if exact:
                fields["ignore_eos"] = True
            elif self.thinking and reasoning:
                fields["thinking"]["budget_tokens"] = reasoning
        return fields


PLACES = ["Paris", "Rome", "Oslo", "Lima", "Cairo", "Tokyo"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": PLACES}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for name, description in (
        ("get_weather", "Get the weather of a city"),
        ("get_time", "Get the local time of a city"),
    )
]
"""Their arguments are of bounded length, so that a forced call always ends."""


def converse(
    conversation: Conversation, system_tokens: int, texts: Texts, manner: Manner, *key: object
) -> Script:
    """A user, or an agent whose tool calls are answered, in one conversation.

    Every tool step of the conversation asks for a call; a model that answers instead ends the turn.
    key: what tells this conversation's texts from others; the system text is the same for all.
    """
    messages = [{"role": "system", "content": texts.text(system_tokens, "system", system_tokens)}]
    for number, turn in enumerate(conversation.turns):
        user = texts.text(turn.user_tokens, "user", *key, number)
        messages.append({"role": "user", "content": user})
        told = yield from _turn(turn, messages, texts, manner, number > 0, (*key, number))
        if not told:
            return


def _turn(
    turn: Turn,
    messages: list[dict[str, Any]],
    texts: Texts,
    manner: Manner,
    pauses: bool,
    key: tuple[object, ...],
) -> Generator[Ask, Answer, bool]:
    """One turn; returns False when the window is full."""
    pause_s = turn.think_s if pauses else 0.0
    for place, step in enumerate(turn.steps):
        tokens = max(step.call_tokens, CALL_TOKENS)
        fields = manner.output(tokens, reasoning=step.reasoning_tokens, exact=False)
        ask = Ask(
            {"messages": list(messages), "tools": TOOLS, "tool_choice": "required", **fields},
            pause_s,
            asks_call=True,
        )
        answer = yield ask
        if not answer.tool_calls:
            messages.append(answer.message(with_reasoning=manner.echo))
            return _fits(answer, turn, 0, manner)
        messages.append(answer.message(with_reasoning=manner.echo))
        for call in answer.tool_calls:
            result = texts.text(step.result_tokens, "result", *key, place)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        if not _fits(answer, turn, step.result_tokens * len(answer.tool_calls), manner):
            return False
        pause_s = step.latency_s
    fields = manner.output(turn.answer_tokens, reasoning=turn.reasoning_tokens)
    tools = {"tools": TOOLS, "tool_choice": "none"} if turn.steps else {}
    answer = yield Ask({"messages": list(messages), **tools, **fields}, pause_s)
    messages.append({"role": "assistant", "content": answer.content})
    return _fits(answer, turn, 0, manner)


def _fits(answer: Answer, turn: Turn, added_tokens: int, manner: Manner) -> bool:
    """Whether there is room for a turn like this one after what has been said."""
    usage = answer.usage
    if usage is None:
        return True
    held = usage.prompt_tokens + usage.completion_tokens + added_tokens
    longest = max((step.result_tokens for step in turn.steps), default=0)
    said = turn.reasoning_tokens + turn.answer_tokens + CALL_TOKENS
    return held + turn.user_tokens + longest + said + MARGIN_TOKENS <= manner.window_tokens


def think(
    question_tokens: int, budget_tokens: int, texts: Texts, manner: Manner, *key: object
) -> Script:
    """One hard question, answered with so many tokens, most of them reasoning."""
    question = texts.text(question_tokens, "question", *key)
    yield Ask({"messages": [{"role": "user", "content": question}], **manner.output(budget_tokens)})


def replay(
    request: TraceRequest, scale: float, texts: Texts, manner: Manner, *key: object
) -> Script:
    """One request of a trace, its lengths times `scale`.

    A block's text depends on its id alone: equal ids are equal text, so that the server finds the
    prefixes that the traced one found. key: for the text of prompts without ids.
    """
    prompt_tokens, output_tokens = scaled_lengths(request, scale)
    if request.blocks:
        block_tokens = BLOCK_TOKENS * scale
        whole = [texts.text(round(block_tokens), "block", one) for one in request.blocks[:-1]]
        rest = max(1, round(prompt_tokens - block_tokens * len(whole)))
        prompt = "\n".join([*whole, texts.text(rest, "block", request.blocks[-1])])
    else:
        prompt = texts.text(prompt_tokens, "prompt", *key)
    yield Ask({"messages": [{"role": "user", "content": prompt}], **manner.output(output_tokens)})


def scaled_lengths(request: TraceRequest, scale: float) -> tuple[int, int]:
    """Returns (prompt tokens, output tokens) of a traced request at a scale, 1 at least."""
    lengths = (request.prompt_tokens, request.output_tokens)
    prompt_tokens, output_tokens = (max(1, round(tokens * scale)) for tokens in lengths)
    return prompt_tokens, output_tokens


def fits(request: TraceRequest, scale: float, window_tokens: int) -> bool:
    """Whether the server's window holds a traced request and its answer."""
    return sum(scaled_lengths(request, scale)) + MARGIN_TOKENS <= window_tokens
