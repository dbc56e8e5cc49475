from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.sampler import NO_TOKEN, sample
from engine.sampler_state import SamplerState
from engine.token_masks import AllowedTokens
from scheduler.request import ReasoningBudget
from tests.engine.sampling_rows import VOCAB, draws, logits_of, state

# ---------------------------------------------------------------- penalties and biases


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8),
    st.lists(st.integers(0, VOCAB - 1), max_size=12),
    st.sampled_from([0.0, 0.7, -2.0]),
    st.sampled_from([0.0, 1.3, -0.5]),
    st.sampled_from([1.0, 1.4, 0.6]),
    st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, 3.5, 100.0]), max_size=3),
)
def test_penalties_follow_their_formulas(
    seed: int,
    prompt: list[int],
    generated: list[int],
    frequency: float,
    presence: float,
    repetition: float,
    bias: dict[int, float],
) -> None:
    logits = logits_of(seed)
    expected = logits.double().tolist()
    for token in {*prompt, *generated}:
        value = expected[token]
        expected[token] = value / repetition if value > 0 else value * repetition
    for token, count in Counter(generated).items():
        expected[token] -= count * frequency + presence
    for token, value in bias.items():
        expected[token] += value
    row = state(
        prompt,
        generated,
        temperature=0.0,
        frequency_penalty=frequency,
        presence_penalty=presence,
        repetition_penalty=repetition,
        logit_bias=bias,
    )
    best = max(expected)
    close = {token for token, value in enumerate(expected) if value > best - 1e-4}
    before = logits.clone()
    assert sample(logits[None], [row], [1])[0] in close
    assert torch.equal(logits, before), "the caller's logits are for logprobs"


def test_penalties_grow_with_what_sampling_itself_generates() -> None:
    row = state([3], temperature=0.0, frequency_penalty=1.0)
    logits = torch.tensor([[0.0, 2.5, 0.9, 0.0]])
    assert [sample(logits, [row], [n])[0] for n in range(4)] == [1, 1, 2, 1]


def test_the_prompt_counts_for_repetition_but_not_for_frequency_and_presence() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.9, 0.0]])
    openai = state([1] * 5, temperature=0.0, frequency_penalty=2.0, presence_penalty=2.0)
    assert sample(logits, [openai], [1]) == [1]
    assert sample(logits, [state([1], temperature=0.0, repetition_penalty=2.0)], [1]) == [2]


def test_no_stop_token_is_sampled_before_min_tokens() -> None:
    logits = torch.tensor([[0.0, 9.0, 8.0, 1.0]])  # 1 is the end of sequence, 2 a stop token
    row = state(temperature=0.0, min_tokens=2, stop_token_ids=(2,))
    assert [sample(logits, [row], [n])[0] for n in range(3)] == [3, 3, 1]


def test_a_resumed_slot_remembers_what_it_generated() -> None:
    """After preemption the state is built anew from the tokens; it must go on as before."""
    logits = torch.tensor([[0.0, 2.5, 0.9, 0.0]])
    fields: dict[str, Any] = {"temperature": 0.0, "frequency_penalty": 1.0, "min_tokens": 3}
    going = state([3], **fields)
    first = [sample(logits, [going], [n])[0] for n in range(2)]
    resumed = state([3], first, **fields)
    for n in range(2, 6):
        assert sample(logits, [resumed], [n]) == sample(logits, [going], [n])


# ---------------------------------------------------------------- what is allowed


def allow(rows: list[int], *tokens: list[int]) -> AllowedTokens:
    """What grammars allow in these rows."""
    masks = torch.zeros(len(rows), VOCAB, dtype=torch.bool)
    for mask, allowed in zip(masks, tokens, strict=True):
        mask[allowed] = True
    return AllowedTokens(rows, masks)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_holds_for_its_row_only(temperature: float) -> None:
    logits = torch.stack([logits_of(seed) for seed in range(3)])
    rows = [state(seed=seed, temperature=temperature) for seed in range(3)]
    free = sample(logits, [state(seed=s, temperature=temperature) for s in range(3)], [4] * 3)
    others = [token for token in range(VOCAB) if token != free[1]]
    tokens = sample(logits, rows, [4] * 3, allow([1], others[:3]))
    assert tokens[0] == free[0] and tokens[2] == free[2]
    assert tokens[1] in others[:3]
    assert torch.equal(logits[1], logits_of(1)), "left as it was"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_any_token_samples_none(temperature: float) -> None:
    logits = torch.stack([logits_of(0), logits_of(1)])
    rows = [state(temperature=temperature), state(temperature=temperature)]
    tokens = sample(logits, rows, [3, 3], allow([0], []))
    assert tokens[0] == NO_TOKEN and 0 <= tokens[1] < VOCAB
    assert (rows[0].output_ids, rows[1].output_ids) == ([], [tokens[1]])


def test_penalties_and_bias_do_not_lift_a_mask() -> None:
    how = {"logit_bias": {3: 100.0}, "repetition_penalty": 1.5, "frequency_penalty": -2.0}
    row = state([3], [3, 3], temperature=0.0, **how)
    assert sample(logits_of()[None], [row], [3], allow([0], [7])) == [7]


def test_min_tokens_does_not_forbid_the_only_end_left() -> None:
    row = state(min_tokens=5)
    assert sample(logits_of()[None], [row], [1], allow([0], [1])) == [1]
    assert sample(logits_of()[None], [state(min_tokens=5)], [1], allow([0], [1, 2])) == [2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_sampled(temperature: float) -> None:
    drawn = draws(logits_of(), 60, temperature=temperature, allowed_token_ids=(4, 9))
    assert set(drawn) <= {4, 9}


def test_a_bad_word_is_not_completed() -> None:
    def next_of(generated: list[int], *words: tuple[int, ...]) -> int:
        row = state([5, 6], generated, temperature=0.0, bad_words=words)
        return sample(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), [row], [2])[0]

    assert next_of([], (3,)) == 2
    assert next_of([1, 2], (1, 2, 3)) == 2
    assert next_of([2, 1], (1, 2, 3)) == 3
    assert next_of([2], (1, 2, 3)) == 3
    assert next_of([1, 2], (1, 2, 3), (2, 2)) == 1
    # The prompt's own words do not count.
    assert next_of([], (5, 6, 3)) == 3


# ---------------------------------------------------------------- the reasoning budget


def reasoning(generated: list[int], max_tokens: int, **fields: Any) -> SamplerState:
    budget = ReasoningBudget(max_tokens, 7, (8,))
    return state([2, 3], generated, temperature=1.0, reasoning=budget, **fields)


def test_a_spent_budget_ends_the_reasoning() -> None:
    logits = logits_of()
    logits[7] = -50.0
    row = reasoning([], 2)
    tokens = [sample(logits[None], [row], [position])[0] for position in range(2, 8)]
    assert tokens[2] == 7 and 7 not in tokens[3:]
    assert sample(logits[None], [reasoning([], 0)], [2]) == [7]


@pytest.mark.parametrize("end", [7, 8])
def test_reasoning_that_ended_by_itself_is_not_ended_again(end: int) -> None:
    logits = logits_of()
    logits[7] = -50.0
    row = reasoning([4, end, 4, 4], 3)
    assert sample(logits[None], [row], [6]) != [7]


def test_the_budget_goes_before_the_allowed_tokens() -> None:
    row = reasoning([4, 4], 2, allowed_token_ids=(4, 5))
    assert sample(logits_of()[None], [row], [4]) == [7]
    assert sample(logits_of()[None], [row], [5])[0] in (4, 5)


# ---------------------------------------------------------------- rows together


def demanding(number: int, **fields: Any) -> SamplerState:
    """A row with some of everything that adjusts logits, different for every number."""
    tokens = [2 + (number + step) % (VOCAB - 2) for step in range(5)]
    kinds: list[dict[str, Any]] = [
        {},
        {"logit_bias": {tokens[0]: 4.0, tokens[1]: -50.0}},
        {"allowed_token_ids": tuple(tokens)},
        {"bad_words": ((tokens[2],), (tokens[0], tokens[3]), (tokens[4], tokens[0], tokens[1]))},
        {"frequency_penalty": 0.7, "presence_penalty": -0.3},
        {"repetition_penalty": 1.6},
        {"min_tokens": 9, "stop_token_ids": (tokens[2], 1)},
        {"allowed_token_ids": (1, tokens[0]), "min_tokens": 9},
        {"reasoning": ReasoningBudget(3, end_token=tokens[1])},
    ]
    chosen = kinds[number % len(kinds)] | kinds[(number // len(kinds)) % len(kinds)]
    return state(tokens[:3], tokens[2:], seed=number, **chosen | fields)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_with_many_kinds_of_demands_draw_as_they_would_alone(temperature: float) -> None:
    count, steps = 81, 6
    logits = torch.stack([logits_of(n) for n in range(count)])
    together = [demanding(n, temperature=temperature) for n in range(count)]
    alone = [demanding(n, temperature=temperature) for n in range(count)]
    for step in range(steps):
        drawn = sample(logits, together, [step] * count)
        assert drawn == [sample(logits[n : n + 1], [alone[n]], [step])[0] for n in range(count)]


def test_what_a_request_brings_travels_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step brings to the device which rows have what, not what they have."""
    vocab, rows = 3000, 4
    many = range(2, 1002)
    states = [
        state(
            list(many),
            [7] * 500,
            temperature=1.0,
            seed=n,
            logit_bias=dict.fromkeys(many, 0.5),
            allowed_token_ids=tuple(many),
            bad_words=tuple((token,) for token in range(2, 102)),
            stop_token_ids=tuple(range(2, 66)),
            min_tokens=10_000,
            repetition_penalty=1.1,
            frequency_penalty=0.1,
        )
        for n in range(rows)
    ]
    logits = torch.stack([logits_of(n, vocab) for n in range(rows)])
    sample(logits, states, [1] * rows)
    make, moved = torch.tensor, []

    def counted(data: Any, **how: Any) -> Tensor:
        made = make(data, **how)
        moved.append(made.numel())
        return made

    monkeypatch.setattr(torch, "tensor", counted)
    for step in range(2, 5):
        moved.clear()
        sample(logits, states, [step] * rows)
        assert sum(moved) <= 32 * rows
