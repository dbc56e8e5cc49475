from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.sampler import NO_TOKEN, logprobs_of, sample, uniform
from engine.sampler_state import SamplerState
from engine.token_masks import AllowedTokens
from scheduler.request import ReasoningBudget, Sampling

VOCAB = 24


def state(
    prompt: list[int] | None = None,
    generated: list[int] | None = None,
    *,
    choice: int = 0,
    eos: tuple[int, ...] = (1,),
    **fields: Any,
) -> SamplerState:
    tokens = [*(prompt or []), *(generated or [])]
    sampling = Sampling(**{"max_tokens": 100} | fields)
    return SamplerState.start(sampling, choice, tokens, len(prompt or []), eos)


def logits_of(seed: int = 0, vocab: int = VOCAB) -> Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 2


def draws(logits: Tensor, count: int, **fields: Any) -> Counter[int]:
    """How often each token is drawn over `count` seeds."""
    rows = [state(seed=seed, **fields) for seed in range(count)]
    return Counter(sample(logits.expand(count, -1), rows, [7] * count))


def kept(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> list[int]:
    """The tokens the filters leave, by plain float64 arithmetic; most likely first."""
    tempered = [x / temperature for x in logits.double().tolist()]
    order = sorted(range(len(tempered)), key=lambda i: (-tempered[i], i))
    order = order[: top_k or None]
    best = tempered[order[0]]
    order = [i for i in order if math.exp(tempered[i] - best) >= min_p]
    total = sum(math.exp(tempered[i] - best) for i in order)
    support, mass = [], 0.0
    for i in order:
        if support and mass >= top_p:
            break
        support.append(i)
        mass += math.exp(tempered[i] - best) / total
    return support


# ---------------------------------------------------------------- greedy


def test_temperature_0_takes_the_most_likely_and_the_lowest_of_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0], [5.0, 5.0, 5.0, 5.0]])
    assert sample(logits, [state(temperature=0.0), state(temperature=0.0)], [1, 1]) == [1, 0]


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-6])
def test_a_temperature_too_small_to_divide_by_is_greedy(temperature: float) -> None:
    logits = logits_of() * 10
    assert sample(logits[None], [state(temperature=temperature)], [1]) == [int(logits.argmax())]


def test_greedy_and_drawn_rows_mix_in_one_batch() -> None:
    logits = torch.stack([logits_of(0), logits_of(1), logits_of(2)])
    mixed = sample(logits, [state(seed=4), state(temperature=0.0), state(seed=9)], [3, 3, 3])
    assert mixed[0] == sample(logits[:1], [state(seed=4)], [3])[0]
    assert mixed[1] == int(logits[1].argmax())
    assert mixed[2] == sample(logits[2:], [state(seed=9)], [3])[0]


# ---------------------------------------------------------------- seeds


@given(st.integers(-(2**70), 2**70), st.integers(0, 127), st.integers(0, 200_000))
def test_noise_lies_between_0_and_1_and_repeats(seed: int, choice: int, position: int) -> None:
    value = uniform(seed, choice, position)
    assert 0.0 < value < 1.0
    assert value == uniform(seed, choice, position)


def test_noise_depends_on_each_argument_and_is_spread_evenly() -> None:
    values = [uniform(s, c, p) for s in range(20) for c in range(20) for p in range(20)]
    assert len(set(values)) == 8000
    buckets = Counter(int(v * 20) for v in values)
    assert sum((buckets[b] - 400) ** 2 / 400 for b in range(20)) < 43.8  # chi2(19) at 0.1 %


@settings(max_examples=30)
@given(st.integers(0, 2**64 - 1), st.integers(1, 8), st.integers(0, 7))
def test_a_draw_does_not_depend_on_the_batch(seed: int, others: int, place: int) -> None:
    logits = torch.stack([logits_of(n) for n in range(others + 1)])
    place = min(place, others)
    rows = [state(seed=seed + n) for n in range(others + 1)]
    positions = list(range(10, 10 + others + 1))
    together = sample(logits, rows, positions)[place]
    line = slice(place, place + 1)
    assert sample(logits[line], [state(seed=seed + place)], positions[line]) == [together]


def test_seed_choice_and_position_change_the_draws() -> None:
    flat = torch.zeros(1, 1000)
    base = sample(flat, [state(seed=1)], [5])
    assert sample(flat, [state(seed=1)], [5]) == base
    assert sample(flat, [state(seed=2)], [5]) != base
    assert sample(flat, [state(seed=1, choice=1)], [5]) != base
    assert sample(flat, [state(seed=1)], [6]) != base


# ---------------------------------------------------------------- distribution and filters


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits, count = logits_of(3, vocab=10) / 2, 20_000
    found = draws(logits, count, temperature=temperature)
    expected = (logits.double() / temperature).softmax(0) * count
    assert expected.min() > 5
    chi_square = sum((found[i] - e) ** 2 / e for i, e in enumerate(expected.tolist()))
    assert chi_square < 27.9  # chi2(9) at 0.1 %; the seeds are fixed


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([0.3, 1.0, 1.5]),
    st.sampled_from([0, 1, 3, 10, 500]),
    st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_the_filters_keep_what_plain_arithmetic_keeps(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = logits_of(seed)
    fields = {"temperature": temperature, "top_k": top_k, "min_p": min_p}
    found = draws(logits, 1500, top_p=top_p, **fields)
    # A hair's breadth on either side: float32 sums may fall there.
    widest = kept(logits, top_p=min(1.0, top_p + 1e-5), **fields)
    narrowest = kept(logits, top_p=top_p - 1e-5, **fields)
    assert found.keys() <= set(widest)
    p = torch.tensor([float(logits[i]) / temperature for i in narrowest]).softmax(0)
    frequent = {i for i, chance in zip(narrowest, p.tolist(), strict=True) if chance > 0.02}
    assert frequent <= found.keys()


@settings(max_examples=200, deadline=None)
@given(
    st.builds(
        Sampling,
        max_tokens=st.just(9),
        temperature=st.floats(0, 2),
        top_p=st.floats(0, 1, exclude_min=True),
        top_k=st.integers(0, 2**31 - 1),
        min_p=st.floats(0, 1),
        seed=st.integers(0, 2**63 - 1),
        repetition_penalty=st.floats(0, 2, exclude_min=True),
        frequency_penalty=st.floats(-2, 2),
        logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=3),
    ),
    st.sampled_from([1e-30, 1.0, 1e4, 1e30]),
)
def test_no_value_in_the_allowed_ranges_stops_the_engine(how: Sampling, spread: float) -> None:
    row = SamplerState.start(how, 0, [3, 3, 4, 5], 2, (1,))
    (token,) = sample(logits_of(1)[None] * spread, [row], [4])
    assert 0 <= token < VOCAB


def test_a_masked_token_is_never_drawn() -> None:
    logits = torch.full((VOCAB,), -torch.inf)
    logits[[4, 9]] = 0.0
    assert draws(logits, 300).keys() == {4, 9}


def test_a_row_of_nan_does_not_stop_the_others() -> None:
    logits = torch.stack([torch.full((VOCAB,), torch.nan), logits_of(1)])
    tokens = sample(logits, [state(seed=1), state(seed=2)], [1, 1])
    assert 0 <= tokens[0] < VOCAB
    assert tokens[1] == sample(logits[1:], [state(seed=2)], [1])[0]


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


# ---------------------------------------------------------------- logprobs


def test_logprobs_are_the_normalised_log_softmax() -> None:
    logits = logits_of(5)
    expected = logits.double().log_softmax(0)
    (found,) = logprobs_of(logits[None], [7], [VOCAB])
    assert found is not None
    assert found.logprob == pytest.approx(expected[7].item(), abs=1e-5)
    assert sum(math.exp(value) for _, value in found.top) == pytest.approx(1.0, abs=1e-5)
    assert [token for token, _ in found.top] == expected.argsort(descending=True).tolist()
    for token, value in found.top:
        assert value == pytest.approx(expected[token].item(), abs=1e-5)


def test_no_top_logprobs_still_give_the_sampled_one() -> None:
    (found,) = logprobs_of(logits_of(5)[None], [7], [0])
    assert found is not None and found.top == [] and found.logprob < 0


def test_each_row_gets_as_many_logprobs_as_it_asks_for() -> None:
    logits = torch.stack([logits_of(n) for n in range(4)])
    found = logprobs_of(logits, [1, 2, 3, 4], [3, None, 0, 1])
    assert [None if line is None else len(line.top) for line in found] == [3, None, 0, 1]
    for row in (0, 2, 3):
        assert logprobs_of(logits[row : row + 1], [row + 1], [(3, 0, 0, 1)[row]]) == [found[row]]


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
