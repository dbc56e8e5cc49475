"""Playing and grading cases."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from api.chat.encoding import Encoder
from training.agent import Generate, parse_reply, play
from training.data import Mix, draw_case
from training.evaluate import draw_cases, show, tabulate
from training.stages import EMBEDDED
from training.tasks.case import Case

CHAINS = Mix(tools=1.0, tool_count=(2, 3), tool_turns=(1, 2), chain=0.5)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.from_folder(EMBEDDED)


def _perfect(encoder: Encoder, case: Case, thinking: bool, spoil: str = "") -> Generate:
    """Generates the reference replies of one case, in order; `spoil` is replaced by "wrong"."""
    tools = case.tools or None
    whole = encoder.encode(case.messages, tools=tools, thinking=thinking).token_ids

    def generate(prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        (prompt,) = prompts
        assert whole[: len(prompt)] == prompt
        rest = whole[len(prompt) :]
        reply = rest[: rest.index(encoder.eos_token_id) + 1]
        if not spoil:
            return [reply]
        text = encoder.tokenizer.decode(reply, skip_special_tokens=False)
        changed = text.replace(spoil, "wrong")
        return [encoder.tokenizer.encode(changed, add_special_tokens=False).ids]

    return generate


@pytest.mark.parametrize("thinking", [False, True])
def test_reference_replies_are_right(encoder: Encoder, thinking: bool) -> None:
    rng = Random(0)
    for _ in range(6):
        case = draw_case(rng, CHAINS, "held-out")
        (outcome,) = play([(case, thinking)], encoder, _perfect(encoder, case, thinking))
        assert outcome.right, outcome
        given = encoder.encode(case.given, tools=case.tools or None, thinking=thinking)
        assert outcome.prompt_tokens == len(given.token_ids)


def test_a_wrong_argument_is_wrong(encoder: Encoder) -> None:
    rng = Random(1)
    case = next(
        one
        for one in (draw_case(rng, CHAINS, "held-out") for _ in range(50))
        if one.task == "chain"
    )
    name = case.turns[-1].replies[0].tool_calls[0].name
    generate = _perfect(encoder, case, False, spoil=f'invoke name="{name}"')
    (outcome,) = play([(case, False)], encoder, generate)
    assert not outcome.right


def test_an_answer_that_never_ends_is_wrong(encoder: Encoder) -> None:
    case = draw_case(Random(2), Mix(chat=1.0), "held-out")
    (outcome,) = play([(case, False)], encoder, lambda prompts, _: [[5] * 4 for _ in prompts])
    assert not outcome.right


def test_parse_reply_refuses_a_broken_call() -> None:
    broken = '\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="a">\n<｜DSML｜oops'
    assert parse_reply(broken, False, True) is None


def test_drawn_cases_fit_their_length_and_repeat(encoder: Encoder) -> None:
    mixes = {"facts": {256: Mix(facts=1.0, unknown=0.0)}}
    cases = draw_cases(encoder, mixes, 3, 0)
    assert cases == draw_cases(encoder, mixes, 3, 0)
    assert len(cases) == 6 and {thinking for _, thinking in cases} == {False, True}
    for case, thinking in cases:
        prompt = encoder.encode(case.given, tools=None, thinking=thinking)
        assert case.task == "facts" and len(prompt.token_ids) <= 256


def test_table_counts_by_task_mode_and_length(encoder: Encoder) -> None:
    case = draw_case(Random(3), Mix(chat=1.0), "held-out")
    right = play([(case, True)], encoder, _perfect(encoder, case, True))
    wrong = play([(case, True)], encoder, lambda prompts, _: [[5] for _ in prompts])
    (cell,) = tabulate([*right, *wrong])
    assert (cell.task, cell.thinking, cell.cases, cell.accuracy) == ("chat", True, 2, 0.5)
    assert "50.0% (  2)" in show([cell])
