"""api.chat.splicing: a generated turn, closed as the next prompt holds it."""

from __future__ import annotations

import pytest

from api.chat.encoding import Encoder
from api.chat.messages import Message, ToolCall, Written
from api.chat.splicing import written_turn
from scheduler.retention import flip_point
from tests.api.chat.outputs import CITY, CLOSE, OPEN, block

RESULT = Message("tool", "Rain", tool_call_id="x")
USER = Message("user", "Weather?")


def tokens(encoder: Encoder, text: str) -> list[int]:
    found: list[int] = encoder.tokenizer.encode(text, add_special_tokens=False).ids
    return found


def caller(written: Written | None = None, reasoning: str | None = "hm") -> Message:
    call = ToolCall("x", "weather", '{"city": "Paris"}')
    return Message("assistant", "So", reasoning=reasoning, tool_calls=(call,), written=written)


@pytest.mark.parametrize("thinking", [True, False])
def test_what_the_model_wrote_as_trained_is_what_would_be_rendered(
    encoder: Encoder, thinking: bool
) -> None:
    said = tokens(encoder, f"{'hm</think>' if thinking else ''}So{block(CITY)}")
    written = written_turn(encoder, [*said, encoder.eos_token_id], thinking)
    assert (written.reasoning is not None) == thinking
    spliced = encoder.encode([USER, caller(written), RESULT], thinking=thinking)
    rendered = encoder.encode([USER, caller(), RESULT], thinking=thinking)
    assert spliced.token_ids == rendered.token_ids
    assert flip_point(spliced.spans) == flip_point(rendered.spans)
    # Behind another user message the same tokens stand without the reasoning.
    after = [USER, caller(written), RESULT, USER]
    bare = [USER, caller(), RESULT, USER]
    assert encoder.encode(after, thinking=True) == encoder.encode(bare, thinking=True)


def test_other_tokens_of_the_same_text_are_kept(encoder: Encoder) -> None:
    said = [
        *encoder.encode_text("h"),
        *encoder.encode_text("m"),
        *tokens(encoder, f"</think>So{block(CITY)}"),
        encoder.eos_token_id,
    ]
    written = written_turn(encoder, said, True)
    before = encoder.encode([USER], thinking=True).token_ids
    prompt = encoder.encode([USER, caller(written), RESULT], thinking=True)
    assert prompt.token_ids[: len(before) + len(said)] == [*before, *said]
    assert prompt.spans[-1].end == len(prompt.token_ids)


WHOLE = f"hm</think>So{block(CITY)}"


@pytest.mark.parametrize(
    "cut",
    [
        WHOLE.removesuffix(f"\n{CLOSE}"),
        WHOLE.removesuffix(CLOSE),
        WHOLE.removesuffix("｜DSML｜function_calls>"),
        WHOLE.removesuffix("calls>"),
        WHOLE,
    ],
)
def test_a_turn_cut_behind_a_call_is_closed(encoder: Encoder, cut: str) -> None:
    said = tokens(encoder, cut)
    written = written_turn(encoder, said, True)
    assert written.reasoning is not None and written.rest is not None
    ids = [*written.reasoning, *written.rest]
    assert ids[: len(said)] == said
    assert encoder.tokenizer.decode(ids[:-1], skip_special_tokens=False) == WHOLE
    assert ids[-1] == encoder.eos_token_id


@pytest.mark.parametrize(
    "cut", [WHOLE.removesuffix("voke>\n" + CLOSE), f"{WHOLE} and", f"hm</think>{OPEN}\n"]
)
def test_one_cut_anywhere_else_keeps_its_reasoning_alone(encoder: Encoder, cut: str) -> None:
    written = written_turn(encoder, tokens(encoder, cut), True)
    assert written.reasoning == (*encoder.encode_text("hm"), encoder.think_end_token_id)
    assert written.rest is None


def test_role_tokens_inside_a_turn_are_never_spliced(encoder: Encoder) -> None:
    said = tokens(encoder, f"hm</think><｜User｜>So{block(CITY)}")
    assert written_turn(encoder, [*said, encoder.eos_token_id], True) == Written()


def test_a_turn_that_never_ended_its_reasoning_is_one_piece(encoder: Encoder) -> None:
    said = [*tokens(encoder, f"hm{block(CITY)}"), encoder.eos_token_id]
    assert written_turn(encoder, said, True) == Written((), tuple(said))
