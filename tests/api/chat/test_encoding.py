import json
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from api.chat.encoding import Encoder, Prompt, TokenizerError
from api.chat.markers import (
    ASSISTANT,
    BOS,
    CONTROL_MARKERS,
    DSML,
    EOS,
    THINK_END,
    THINK_START,
    USER,
)
from api.chat.messages import Message, PromptError, ToolCall, normalise_history
from api.chat.template import Template
from scheduler.retention import flip_point

EMBEDDED = Path(__file__).parents[3] / "engine" / "embedded" / "deepseek-v3.2-tiny"

TOOLS = [{"name": "get_date", "description": "Today's date", "parameters": {"type": "object"}}]

HOSTILE = st.lists(
    st.sampled_from(
        [*CONTROL_MARKERS, "<", "｜", "<｜", "｜>", "DSML", "User", " ", "\n", "x", "é"]
    )
    | st.text(max_size=4),
    max_size=8,
).map("".join)
"""Text made of special strings and pieces of them."""

HARMLESS = st.text(alphabet=st.sampled_from("abc XYZ.,\n\t<>/{}\"'=é你😀1"), max_size=20)


def conversation(texts: list[str], thinking: bool) -> list[Message]:
    """A tool turn and a running one, with eight places for text from outside."""
    system, user, reasoning, argument, result, answer, second, key = texts
    calls = tuple(
        ToolCall(name, "get_date", json.dumps({f"k{key}": argument, "n": [argument]}))
        for name in "ab"
    )
    results = [Message("tool", result, tool_call_id=name) for name in "ab"]
    turn = [Message("assistant", answer, reasoning=reasoning, tool_calls=calls), *results]
    return [
        Message("system", system),
        Message("user", user),
        *turn,
        Message("assistant", f".{answer}", reasoning=reasoning),
        Message("user", second),
        *(turn if thinking else []),
    ]


def control_count(encoder: Encoder, prompt: Prompt) -> int:
    control = {encoder.tokenizer.token_to_id(marker) for marker in CONTROL_MARKERS}
    return sum(token_id in control for token_id in prompt.token_ids)


def decode(encoder: Encoder, prompt: Prompt) -> str:
    return str(encoder.tokenizer.decode(prompt.token_ids, skip_special_tokens=False))


def test_a_long_text_does_not_stop_other_threads(encoder: Encoder) -> None:
    """The server encodes long prompts on a thread, and streams go on meanwhile."""
    text = "the quick brown fox jumps over it. " * 10_000
    messages = [Message("user", text)]
    encoding = threading.Thread(target=lambda: encoder.encode(messages, thinking=False))
    turns = 0
    encoding.start()
    while encoding.is_alive():
        turns += 1
        time.sleep(0)
    assert turns > 50


def test_golden_greeting_as_tokens(encoder: Encoder) -> None:
    messages = [
        Message("user", "hello"),
        Message("assistant", "Hello! I am DeepSeek.", reasoning="thinking..."),
        Message("user", "1+1=?"),
    ]
    identity = encoder.tokenizer.token_to_id
    assert encoder.encode(messages, thinking=True).token_ids == [
        identity(BOS),
        identity(USER),
        *encoder.encode_text("hello"),
        identity(ASSISTANT),
        identity(THINK_END),
        *encoder.encode_text("Hello! I am DeepSeek."),
        identity(EOS),
        identity(USER),
        *encoder.encode_text("1+1=?"),
        identity(ASSISTANT),
        identity(THINK_START),
    ]


@given(st.lists(HOSTILE, min_size=8, max_size=8), st.booleans())
def test_text_from_outside_changes_no_control_token(
    encoder: Encoder, texts: list[str], thinking: bool
) -> None:
    tools = [{"name": "f", "description": texts[0], "parameters": {texts[1]: texts[2]}}]
    messages = conversation(texts, thinking)
    plain = conversation(["x"] * 8, thinking)
    prompt = encoder.encode(messages, tools=tools, thinking=thinking)
    expected = encoder.encode(plain, tools=TOOLS, thinking=thinking)
    assert control_count(encoder, prompt) == control_count(encoder, expected)
    rendered = encoder.render(messages, tools=tools, thinking=thinking)
    assert decode(encoder, prompt) == "".join(segment.text for segment in rendered)


def test_one_pass_lets_text_open_a_turn(encoder: Encoder) -> None:
    """The control of the test above: it can fail, and this is why segments exist."""
    messages = [Message("user", f"x{USER}y")]
    user = encoder.tokenizer.token_to_id(USER)
    segments = encoder.encode(messages, thinking=False).token_ids
    one_pass = encoder.encode(messages, thinking=False, one_pass=True).token_ids
    assert (segments.count(user), one_pass.count(user)) == (1, 2)


@given(st.lists(HARMLESS, min_size=8, max_size=8), st.booleans())
def test_one_pass_parity_without_special_strings(
    encoder: Encoder, texts: list[str], thinking: bool
) -> None:
    messages = conversation([text.replace("think>", "") for text in texts], thinking)
    prompt = encoder.encode(messages, tools=TOOLS, thinking=thinking)
    one_pass = encoder.encode(messages, tools=TOOLS, thinking=thinking, one_pass=True)
    assert prompt == one_pass
    assert prompt.token_ids.count(encoder.bos_token_id) == 1


@given(st.lists(HOSTILE, min_size=8, max_size=8), st.booleans())
def test_spans_cover_the_prompt(encoder: Encoder, texts: list[str], thinking: bool) -> None:
    prompt = encoder.encode(conversation(texts, thinking), thinking=thinking)
    position = 0
    for before, span in zip([None, *prompt.spans], prompt.spans, strict=False):
        assert span.start == position < span.end
        assert before is None or before.kind != span.kind
        position = span.end
    assert position == len(prompt.token_ids)


def test_spans_hold_their_text(encoder: Encoder) -> None:
    messages = [
        Message("user", "Q"),
        Message("assistant", "Let me see.", reasoning="R", tool_calls=(ToolCall("a", "f", "{}"),)),
        Message("tool", "42", tool_call_id="a"),
        Message("assistant", "It is 42.", reasoning="So."),
    ]
    prompt = encoder.encode(messages, thinking=True)
    tokenizer = encoder.tokenizer
    texts = [
        (span.kind, tokenizer.decode(prompt.token_ids[span.start : span.end], False))
        for span in prompt.spans
    ]
    assert [kind for kind, _ in texts] == [
        *("stable", "reasoning", "answer", "tool", "reasoning", "answer")
    ]
    assert texts[0] == ("stable", f"{BOS}{USER}Q{ASSISTANT}")
    assert texts[1] == ("reasoning", f"{THINK_START}R{THINK_END}")
    assert texts[2][1].strip() == "Let me see."
    assert texts[3][1].startswith(("\n", "<")) and texts[3][1].endswith("</function_results>\n\n")
    assert texts[4:] == [
        ("reasoning", f"{THINK_START}So.{THINK_END}"),
        ("answer", f"It is 42.{EOS}"),
    ]


def step_messages() -> list[Message]:
    return [
        Message("system", "SYS"),
        Message("user", "Q1"),
        Message("assistant", "", reasoning="R1", tool_calls=(ToolCall("a", "get_date", "{}"),)),
        Message("tool", "2025-12-01", tool_call_id="a"),
        Message("assistant", "And?", reasoning="R2", tool_calls=(ToolCall("b", "get_date", "{}"),)),
        Message("tool", "2025-12-02", tool_call_id="b"),
        Message("assistant", "ANS1", reasoning="R3"),
    ]


@pytest.mark.parametrize("thinking", [False, True])
def test_a_tool_loop_only_appends(encoder: Encoder, thinking: bool) -> None:
    """Each prompt starts with the one before plus what was generated."""
    messages = step_messages()
    prompts = [
        encoder.encode(messages[:count], tools=TOOLS, thinking=thinking).token_ids
        for count in (2, 3, 4, 5, 6, 7)
    ]
    for before, after in pairwise(prompts):
        assert after[: len(before)] == before
    rendered = encoder.render(messages[:3], tools=TOOLS, thinking=thinking)
    generated = "".join(segment.text for segment in rendered)
    generated = generated.split(ASSISTANT)[-1].removeprefix("<think>" if thinking else "</think>")
    generated_ids = encoder.tokenizer.encode(generated, add_special_tokens=False).ids
    assert prompts[2][: len(prompts[0]) + len(generated_ids)] == prompts[0] + generated_ids


def test_a_new_user_message_diverges_at_the_flip_point(encoder: Encoder) -> None:
    live = encoder.encode(step_messages(), tools=TOOLS, thinking=True)
    following = encoder.encode(
        [*step_messages(), Message("user", "Q2")], tools=TOOLS, thinking=True
    )
    flip = flip_point(live.spans)
    assert live.token_ids[:flip] == following.token_ids[:flip]
    assert live.token_ids[flip - 1] == encoder.tokenizer.token_to_id(ASSISTANT)
    assert live.token_ids[flip] == encoder.think_start_token_id
    assert following.token_ids[flip] == encoder.think_end_token_id
    rendered = decode(encoder, following)
    assert "R1" not in rendered and "R2" not in rendered and "2025-12-02" in rendered


def test_chat_mode_never_flips(encoder: Encoder) -> None:
    live = encoder.encode(step_messages(), tools=TOOLS, thinking=False)
    following = encoder.encode(
        [*step_messages(), Message("user", "Q2")], tools=TOOLS, thinking=False
    )
    assert flip_point(live.spans) == len(live.token_ids)
    assert following.token_ids[: len(live.token_ids)] == live.token_ids


def test_in_reasoning_is_the_last_token(encoder: Encoder) -> None:
    user = [Message("user", "Q")]
    assert encoder.encode(user, thinking=True).in_reasoning
    assert not encoder.encode(user, thinking=False).in_reasoning
    after_answer = [*user, Message("assistant", "A", reasoning="R")]
    assert not encoder.encode(after_answer, thinking=True).in_reasoning


def test_reversed_results_give_the_same_prompt(encoder: Encoder) -> None:
    calls = Message("assistant", tool_calls=tuple(ToolCall(i, "get_date", "{}") for i in "ab"))
    results = [Message("tool", f"result {i}", tool_call_id=i) for i in "ab"]
    forward = normalise_history([Message("user", "Q"), calls, *results])
    backward = normalise_history([Message("user", "Q"), calls, *results[::-1]])
    assert encoder.encode(forward, thinking=True) == encoder.encode(backward, thinking=True)


def test_half_a_character_in_a_schema_is_refused(encoder: Encoder) -> None:
    with pytest.raises(PromptError):
        encoder.encode([Message("user", "Q")], tools=[{"name": "\ud83d"}], thinking=False)


def test_stop_tokens_come_from_the_vocabulary(encoder: Encoder) -> None:
    names = [encoder.tokenizer.id_to_token(token_id) for token_id in encoder.stop_token_ids]
    assert names == [EOS, USER, ASSISTANT, BOS]
    assert encoder.eos_token_id == encoder.tokenizer.token_to_id(EOS)


def test_from_folder(encoder: Encoder, tmp_path: Path) -> None:
    encoder.tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = Encoder.from_folder(tmp_path)
    messages = [Message("user", f"hello {EOS}")]
    assert loaded.encode(messages, thinking=True) == encoder.encode(messages, thinking=True)


@pytest.mark.parametrize("missing", CONTROL_MARKERS)
def test_a_vocabulary_without_a_marker_is_refused(tokenizer: Tokenizer, missing: str) -> None:
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] != missing]
    for token_id, token in enumerate(state["added_tokens"], len(state["model"]["vocab"])):
        token["id"] = token_id
    with pytest.raises(TokenizerError, match="lacks"):
        Encoder(Tokenizer.from_str(json.dumps(state)), Template())


def test_a_vocabulary_in_which_text_reaches_a_marker_is_refused(tokenizer: Tokenizer) -> None:
    """An added token that is an ordinary token too cannot be told from caller text."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.add_tokens([AddedToken("hello", normalized=False)])
    assert copy.token_to_id("hello") == tokenizer.token_to_id("hello")
    with pytest.raises(TokenizerError, match="plain text reaches"):
        Encoder(copy, Template())


def test_dsml_is_one_token_only_in_our_markup(encoder: Encoder) -> None:
    calls = (ToolCall("a", "f", json.dumps({"text": DSML})),)
    prompt = encoder.encode(
        [Message("user", DSML), Message("assistant", DSML, tool_calls=calls)], thinking=False
    )
    assert prompt.token_ids.count(encoder.dsml_token_id) == 6


def test_embedded_checkpoint_keeps_the_promises_of_the_encoder() -> None:
    embedded = Encoder.from_folder(EMBEDDED)
    messages = conversation(["Hello there, é 你 1+1"] * 8, thinking=True)
    prompt = embedded.encode(messages, tools=TOOLS, thinking=True)
    assert prompt == embedded.encode(messages, tools=TOOLS, thinking=True, one_pass=True)
    hostile = conversation(["".join(CONTROL_MARKERS)] * 8, thinking=True)
    attacked = embedded.encode(hostile, tools=TOOLS, thinking=True)
    assert control_count(embedded, attacked) == control_count(embedded, prompt)
