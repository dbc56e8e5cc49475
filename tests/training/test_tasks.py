"""Cases: what is held out stays out of training, and every rendered case parses back."""

from __future__ import annotations

from random import Random

import pytest
from tokenizers import Tokenizer

from api.chat.encoding import Encoder
from training.agent import parse_reply
from training.data import draw_case, encode_case
from training.evaluate import spelled
from training.stages import EMBEDDED, EVALUATION, LONG, MAIN
from training.tasks.case import Turn, calls_of, holds
from training.tasks.toolbox import ABILITIES

MIXES = [MAIN, LONG, *(mix for by_length in EVALUATION.values() for mix in by_length.values())]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.from_folder(EMBEDDED)


def _graded(turn: Turn) -> bool:
    return turn.task != "remember"


def test_no_training_turn_is_held_out() -> None:
    rng = Random(0)
    for mix in MIXES:
        for _ in range(25):
            turns = [turn for turn in draw_case(rng, mix).turns if _graded(turn)]
            assert turns and not any(turn.held_out for turn in turns)


def test_held_out_cases_end_in_a_held_out_turn_only() -> None:
    rng = Random(1)
    for mix in MIXES:
        for _ in range(5):
            case = draw_case(rng, mix, "held-out")
            *earlier, last = case.turns
            assert last.held_out
            assert not any(turn.held_out for turn in earlier if _graded(turn))


def test_the_same_seed_draws_the_same_case() -> None:
    assert draw_case(Random("x"), LONG) == draw_case(Random("x"), LONG)


@pytest.mark.parametrize("thinking", [False, True])
def test_reference_replies_parse_back(encoder: Encoder, thinking: bool) -> None:
    rng = Random(2)
    tokenizer: Tokenizer = encoder.tokenizer
    for mix in MIXES:
        for _ in range(4):
            case = draw_case(rng, mix)
            encoded = encode_case(encoder, case, thinking)
            replies: list[list[int]] = []
            for token, before, generated in zip(
                encoded.token_ids, [False, *encoded.generated], encoded.generated, strict=False
            ):
                if generated:
                    replies = replies if before else [*replies, []]
                    replies[-1].append(token)
            assistants = [one for one in case.messages if one.role == "assistant"]
            assert len(replies) == len(assistants)
            last_turn = len(assistants) - sum(
                one.role == "assistant" for one in case.turns[-1].replies
            )
            for number, (ids, wanted) in enumerate(zip(replies, assistants, strict=True)):
                assert ids[-1] == encoder.eos_token_id
                text = tokenizer.decode(ids[:-1], skip_special_tokens=False)
                reasons = thinking and number >= last_turn
                reply = parse_reply(text, reasons, bool(case.tools))
                assert reply is not None
                assert reply.content == wanted.content
                assert calls_of(reply) == calls_of(wanted)
                assert reply.reasoning == (wanted.reasoning if reasons else None)


def test_reference_answers_hold_what_is_expected() -> None:
    rng = Random(3)
    for mix in MIXES:
        for _ in range(20):
            turn = draw_case(rng, mix).turns[-1]
            assert holds(turn.replies[-1].content, turn.expected), turn


def test_holds_needs_every_part() -> None:
    assert holds("The weather in Oslo is Sunny.", ("oslo", "sunny"))
    assert not holds("The weather in Oslo is warm.", ("oslo", "sunny"))
    assert not holds(" ", ())


@pytest.mark.parametrize("usual", [0.0, 1.0])
def test_tools_are_spelled_as_asked(usual: float) -> None:
    mix = spelled(EVALUATION, usual)["tool"][512]
    rng = Random(3)
    first = {ability.names.split("|")[0] for ability in ABILITIES.values()}
    names = [tool["name"] for _ in range(20) for tool in draw_case(rng, mix, "held-out").tools]
    unusual = sum(name not in first for name in names)
    assert unusual > len(names) // 2 if usual == 0.0 else unusual == 0
