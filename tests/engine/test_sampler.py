from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.sampler import NO_TOKEN, logprobs_of, packed, packed_length, sample, unpacked
from engine.sampler_state import SamplerState
from kernels.sampling import GREEDY_TEMPERATURE
from scheduler.request import Sampling
from tests.engine.sampling_rows import VOCAB, draws, logits_of, state


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


# ---------------------------------------------------------------- settings on their way


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.builds(
            Sampling,
            max_tokens=st.just(9),
            temperature=st.floats(0, 2),
            top_p=st.floats(0, 1, exclude_min=True),
            top_k=st.integers(0, 2**40),
            min_p=st.floats(0, 1),
            seed=st.integers(-(2**70), 2**70),
        ),
        max_size=9,
    )
)
def test_what_draws_take_arrives_in_columns_where_kernels_expect_them(how: list[Sampling]) -> None:
    rows = [SamplerState.start(one, n, [], 0, ()) for n, one in enumerate(how)]
    integers = packed(rows, range(100, 100 + len(rows)))
    assert len(integers) == packed_length(len(rows))
    columns = unpacked(torch.tensor(integers, dtype=torch.int64), len(rows))
    temperature, top_k, top_p, min_p, seeds, choices, positions = columns
    assert all(column.data_ptr() % 16 == 0 for column in columns if rows)
    cold = [0.0 if one.temperature < GREEDY_TEMPERATURE else one.temperature for one in how]
    assert torch.equal(temperature, torch.tensor(cold, dtype=torch.float32))
    assert torch.equal(top_p, torch.tensor([one.top_p for one in how], dtype=torch.float32))
    assert torch.equal(min_p, torch.tensor([one.min_p for one in how], dtype=torch.float32))
    assert top_k.dtype == torch.int32
    assert top_k.tolist() == [min(one.top_k, 2**31 - 1) for one in how]
    assert [seed % 2**64 for seed in seeds.tolist()] == [one.seed % 2**64 for one in how]
    assert choices.tolist() == list(range(len(rows)))
    assert positions.tolist() == list(range(100, 100 + len(rows)))


def test_a_temperature_that_rounding_would_warm_is_greedy() -> None:
    """1e-5 less 1e-17 is 1e-5 in float32."""
    flat = torch.zeros(1, 1000)
    assert sample(flat, [state(temperature=1e-5 - 1e-17, seed=1)], [5]) == [0]
    assert sample(flat, [state(temperature=1e-5, seed=1)], [5]) != [0]


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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_is_no_token_that_is_allowed(temperature: float) -> None:
    """Another row's limits do not decide what becomes of a row of NaN."""
    logits = torch.full((2, VOCAB), torch.nan)
    rows = [state(temperature=temperature, allowed_token_ids=(4, 5)), state(temperature=0.0)]
    first, second = sample(logits, rows, [1, 1])
    assert first == NO_TOKEN and 0 <= second < VOCAB
    logits[0, 5] = -30.0
    assert sample(logits, rows, [1, 1])[0] == 5


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
