"""What clients say, against answers made here."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest

from loadtest.conversations import Conversation, ToolStep, Turn
from loadtest.live.answer import Answer
from loadtest.live.profiles import PROFILES, Part, Scale, script
from loadtest.live.scripts import CALL_TOKENS, Ask, Manner, Script, converse, fits, replay, think
from loadtest.live.text import Texts
from loadtest.traces import TraceRequest
from tests.loadtest.live.chat_server import delta, finish, obedient

TEXTS = Texts(1.0)
STEPS = (ToolStep(20, 30, 1.5, 40), ToolStep(20, 30, 2.5, 40))
TALK = Conversation(
    (Turn(9.0, 25, STEPS, 10, 50), Turn(7.0, 35, (), 0, 60)),
)


def answer(body: dict[str, Any], prompt_tokens: int = 100) -> Answer:
    """What the obedient server says."""
    said = Answer()
    for event in obedient(body):
        if isinstance(event, dict):
            if event.get("usage"):
                event["usage"]["prompt_tokens"] = prompt_tokens
            said.take(msgspec.json.encode(event))
    return said


def played(talk: Script, prompt_tokens: int = 100) -> list[Ask]:
    asks = []
    ask = next(talk)
    while True:
        asks.append(ask)
        try:
            ask = talk.send(answer(ask.body, prompt_tokens))
        except StopIteration:
            return asks


def roles(ask: Ask) -> list[str]:
    return [message["role"] for message in ask.body["messages"]]


def test_a_tool_loop_and_the_next_question() -> None:
    asks = played(converse(TALK, 15, TEXTS, Manner(thinking=True, extensions=True), "k"))
    assert [ask.asks_call for ask in asks] == [True, True, False, False]
    # The first message at once, the next question when the user has thought; tools take theirs.
    assert [ask.pause_s for ask in asks] == [0.0, 1.5, 2.5, 7.0]
    loop = ["system", "user", "assistant", "tool", "assistant", "tool"]
    assert [roles(ask) for ask in asks] == [
        loop[:2],
        loop[:4],
        loop,
        [*loop, "assistant", "user"],
    ]
    result = asks[1].body["messages"][3]
    assert result["tool_call_id"] == "call_1" and len(result["content"].split()) == 40
    assert asks[0].body["max_tokens"] == CALL_TOKENS + 20 and asks[2].body["max_tokens"] == 60
    assert "tools" not in asks[3].body, "a turn without tools is a chat"


@pytest.mark.parametrize("echo", [True, False])
def test_reasoning_is_echoed_or_dropped(echo: bool) -> None:
    asks = played(converse(TALK, 15, TEXTS, Manner(thinking=True, echo=echo), "k"))
    assistant = [one for one in asks[2].body["messages"] if one["role"] == "assistant"]
    assert len(assistant) == 2
    assert all((one.get("reasoning_content") == "hm") is echo for one in assistant)
    assert all(one["tool_calls"] for one in assistant)


def test_each_request_begins_with_the_one_before() -> None:
    asks = played(converse(TALK, 15, TEXTS, Manner(thinking=True), "k"))
    for before, after in pairwise(asks):
        shorter, longer = before.body["messages"], after.body["messages"]
        assert longer[: len(shorter)] == shorter and len(longer) > len(shorter)


def test_a_model_that_does_not_call_ends_its_turn() -> None:
    talk = converse(TALK, 15, TEXTS, Manner(), "k")
    ask = next(talk)
    refuses = Answer()
    for event in (delta(content="No."), finish("stop")):
        refuses.take(msgspec.json.encode(event))
    ask = talk.send(refuses)
    assert roles(ask) == ["system", "user", "assistant", "user"]


def test_a_conversation_ends_where_the_window_does() -> None:
    manner = Manner(window_tokens=600)
    assert len(played(converse(TALK, 15, TEXTS, manner, "k"), prompt_tokens=100)) == 4
    assert len(played(converse(TALK, 15, TEXTS, manner, "k"), prompt_tokens=500)) == 1


def test_extensions_are_sent_only_to_who_takes_them() -> None:
    plain = played(converse(TALK, 15, TEXTS, Manner(thinking=True), "k"))
    for ask in plain:
        assert set(ask.body) <= {"messages", "tools", "tool_choice", "max_tokens"}
    exact = played(converse(TALK, 15, TEXTS, Manner(thinking=True, extensions=True), "k"))
    assert "ignore_eos" not in exact[0].body, "a call ends by itself"
    assert exact[0].body["thinking"] == {"type": "enabled", "budget_tokens": 20}
    assert exact[2].body["ignore_eos"] is True


def trace(prompt_tokens: int, *blocks: int) -> TraceRequest:
    return TraceRequest(0.0, prompt_tokens, 100, blocks)


def prompt_of(request: TraceRequest, scale: float = 1.0, *key: object) -> str:
    ask = next(replay(request, scale, TEXTS, Manner(), *key))
    content: str = ask.body["messages"][0]["content"]
    return content


def test_equal_hash_ids_are_equal_prefixes() -> None:
    one, other = prompt_of(trace(1300, 1, 2, 3)), prompt_of(trace(1500, 1, 2, 4))
    shared = prompt_of(trace(1024, 1, 2))
    assert one.startswith(shared) and other.startswith(shared)
    assert one[len(shared) :].split()[:8] != other[len(shared) :].split()[:8]
    assert len(one.split()) == 1300
    # A partial last block is a prefix of the whole one.
    assert prompt_of(trace(900, 1, 2)) == shared[: len(prompt_of(trace(900, 1, 2)))]


def test_prompts_without_ids_are_unlike_each_other() -> None:
    one, other = (prompt_of(trace(50), 1.0, 0, number).split()[:8] for number in (1, 2))
    assert one != other


@pytest.mark.parametrize("scale", [0.01, 0.1, 0.5, 1.0])
def test_a_trace_is_scaled_with_its_blocks(scale: float) -> None:
    words = prompt_of(trace(1300, 1, 2, 3), scale).split()
    assert len(words) == pytest.approx(1300 * scale, abs=2)
    assert prompt_of(trace(1300, 1, 2, 3), scale).startswith(prompt_of(trace(512, 1), scale))


def test_what_is_longer_than_the_window_is_known_before() -> None:
    assert fits(trace(3000, *range(6)), 1.0, 4096) and not fits(trace(4000, *range(8)), 1.0, 4096)
    assert fits(trace(4000, *range(8)), 0.5, 4096)


def test_a_hard_question_is_thought_about_for_its_budget() -> None:
    (ask,) = played(think(30, 1600, TEXTS, Manner(thinking=True, extensions=True), "k"))
    assert ask.body["max_tokens"] == 1600 and ask.body["ignore_eos"] is True


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_plays_and_repeats(name: str) -> None:
    def bodies(part: Part, seed: int) -> list[dict[str, Any]]:
        manner = Manner(extensions=True)
        talk = script(part, Scale(0.05, 0.1), TEXTS, manner, seed=seed, session=3)
        return [ask.body for ask in played(talk)]

    for part in PROFILES[name].parts:
        assert bodies(part, 1) == bodies(part, 1) != bodies(part, 2)


def test_speciale_is_asked_the_same_and_thinks_longer() -> None:
    def ask(name: str, session: int) -> Ask:
        (part,) = PROFILES[name].parts
        manner = Manner(extensions=True)
        return next(script(part, Scale(), TEXTS, manner, seed=0, session=session))

    for session in range(20):
        shorter, longer = ask("v3.2", session), ask("speciale", session)
        assert shorter.body["messages"] == longer.body["messages"]
        assert 1.3 < longer.body["max_tokens"] / shorter.body["max_tokens"] < 2.4


def test_nothing_is_scaled_to_nothing() -> None:
    (part,) = PROFILES["chat"].parts
    assert part.shape is not None
    tiny = Scale(1e-6, 1e-6).shape(part.shape)
    assert tiny.user_tokens == (8, 8) and tiny.reasoning_tokens == (0, 0)
