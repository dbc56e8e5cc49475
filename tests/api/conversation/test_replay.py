"""A managed history played from its start decides by the prompts there really were, token by token.

The history is replayed from sums of tokens; here every prompt on the way is encoded whole.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.chat.encoding import Encoder
from api.chat.messages import Message, ToolCall, Written, normalise_history
from api.conversation.context_management import (
    ContextManagement,
    Managed,
    PromptSizes,
    manage,
)
from engine.hub import EMBEDDED_MODEL
from tests.api.conversation.test_context_management import (
    WINDOW_TOKENS,
    Lengths,
    history,
    managed,
)

FUNCTION = {"name": "look", "description": "Look around.", "parameters": {"type": "object"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
PIECES = (
    *("\n", "\n\n", " ", "the ", " Paris", "a", "1", "é", "\U0001f33e", "<", "result"),
    *("</result>", "<think>", "</think>", "</function_results>", "｜DSML｜", "<｜User｜>"),
)
TEXTS: Any = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@pytest.fixture(scope="module")
def merging() -> Encoder:
    """An encoder whose tokens reach across the borders of texts wherever they can."""
    return Encoder.from_folder(EMBEDDED_MODEL)


@st.composite
def steps(draw: Any) -> list[Message]:
    """An assistant message and what follows it: results in any order, or a simulated one."""
    reasoning = draw(st.none() | TEXTS)
    content = draw(TEXTS)
    if draw(st.integers(0, 4)) == 0:
        said = Message("assistant", content, reasoning=reasoning or "")
        return [said, Message("user", draw(TEXTS), continues_turn=True)]
    names = [f"call_{number}" for number in range(draw(st.integers(1, 3)))]
    calls = tuple(
        ToolCall(name, "look", msgspec.json.encode({"at": draw(TEXTS), "n": [1]}).decode())
        for name in names
    )
    written = Written(tuple(draw(st.lists(st.integers(10, 300), max_size=5)))) or None
    said = Message(
        "assistant",
        content,
        reasoning=reasoning,
        tool_calls=calls,
        written=written if draw(st.booleans()) else None,
    )
    results = [Message("tool", draw(TEXTS), tool_call_id=name) for name in names]
    return [said, *draw(st.permutations(results))]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_decision_is_made_on_the_prompt_there_was(merging: Encoder, data: Any) -> None:
    thinking = data.draw(st.booleans())
    tools = data.draw(st.sampled_from([None, [FUNCTION]]))
    schema = data.draw(st.sampled_from([None, SCHEMA]))
    question = [Message("user", data.draw(TEXTS))]
    earlier = [Message("user", data.draw(TEXTS)), Message("assistant", data.draw(TEXTS))]
    head = [*[Message("system", "Be brief.")] * data.draw(st.integers(0, 2)), *earlier, *question]
    loop = data.draw(st.lists(steps(), min_size=1, max_size=5))
    started = data.draw(
        st.none() | st.builds(Message, st.just("assistant"), TEXTS, reasoning=TEXTS)
    )

    def real(messages: list[Message], beginning: Message | None) -> int:
        return len(
            merging.encode(
                normalise_history(messages),
                tools=tools,
                response_schema=schema,
                thinking=thinking,
                started=beginning,
            ).token_ids
        )

    # At and beside the length of one of the prompts, where a token more or less decides.
    place = data.draw(st.integers(1, len(loop)))
    sent = [*head, *(message for step in loop[:place] for message in step)]
    beginning = started if place == len(loop) else None
    limit_tokens = real(sent, beginning) + data.draw(st.integers(-1, 1))
    rule = ContextManagement(
        data.draw(st.sampled_from(["discard_all", "discard_75", "summary"])), trigger=0.5
    )
    sizes = PromptSizes(merging, tools, thinking, schema)

    def play(number: int) -> Managed:
        return manage(
            [*head, *(message for step in loop[:number] for message in step)],
            rule,
            sizes,
            window_tokens=2 * limit_tokens,
            summary=lambda key: f"Summary {key.hex()[:6]}.",
            started=started if number == len(loop) else None,
        )

    before = play(0)
    for number, step in enumerate(loop, 1):
        found = play(number)
        asked = [*before.messages, *step]
        beginning = started if number == len(loop) else None
        if real(asked, beginning) <= limit_tokens:
            assert found == Managed(asked, before.applied)
        else:
            assert found.applied[: len(before.applied)] == before.applied
            assert len(found.applied) > len(before.applied)
            kept = len(loop[:number]) - sum(entry.removed_steps for entry in found.applied)
            assert kept == 0 or real(found.messages, beginning) <= limit_tokens
        before = found


def test_the_beginning_of_an_answer_is_part_of_its_prompt_and_of_no_other() -> None:
    for length, resets in ((100, 0), (101, 1)):
        started = Message("assistant", "a" * length)
        found = manage(
            history(300, 300),
            ContextManagement("discard_75"),
            Lengths(),  # type: ignore[arg-type]
            window_tokens=WINDOW_TOKENS,
            summary=lambda key: None,
            started=started,
        )
        assert len(found.applied) == resets
    # The first reset was decided on a prompt without it, and stays as it was.
    found = manage(
        history(300, 500, 100),
        ContextManagement("discard_75"),
        Lengths(),  # type: ignore[arg-type]
        window_tokens=WINDOW_TOKENS,
        summary=lambda key: None,
        started=Message("assistant", "a" * 200),
    )
    assert [entry.removed_steps for entry in found.applied] == [1, 1]


def test_no_prompt_fills_the_window() -> None:
    """Above it nothing is left of the room for an answer."""
    assert not managed(history(899), trigger=1.0).applied
    assert managed(history(900), trigger=1.0).applied
