"""The step predictor against brute-force sums and simulated machines of known speed."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_model.errors import CostError
from cost_model.predictor import StepCoefficients, StepPredictor, StepSums

TOP_K = 2048
COEFFICIENTS = StepCoefficients(
    decode_token_s=1e-4,
    decode_context_token_s=2e-9,
    decode_selected_token_s=2e-8,
    prefill_token_s=2e-5,
    prefill_context_token_s=4e-10,
    prefill_selected_token_s=2e-9,
    row_s=1e-5,
    step_s=2e-3,
)
NO_SECONDS = dict.fromkeys(StepCoefficients.__struct_fields__, 0.0)
SUMS = st.builds(StepSums, *[st.integers(0, 10**12)] * 7)
STEP_SECONDS = st.floats(1e-7, 1e4)
Steps = Callable[[random.Random], StepSums]
Predict = Callable[[StepSums], float]


def decode_step(rng: random.Random) -> StepSums:
    rows, context = rng.randint(1, 128), rng.randint(100, 60_000)
    return StepSums(rows, rows * context, rows * min(context, TOP_K))


def prefill_step(rng: random.Random) -> StepSums:
    start, count = rng.randint(0, 60_000), rng.randint(16, 4096)
    return decode_step(rng) + StepSums.prefill_chunk(start, count, TOP_K)


def equal_step(rng: random.Random) -> StepSums:
    return StepSums(32, 32 * 9000, 32 * TOP_K)


class Machine:
    """Takes `times` the coefficients' seconds and `constant_s`; multiplicative noise, outliers."""

    def __init__(self, seed: int, *, times: float = 3.0, constant_s: float = 0.01) -> None:
        self.rng = random.Random(seed)
        self.times = times
        self.constant_s = constant_s
        self.noise = 0.05
        self.outlier_share = 0.0

    def exact(self, sums: StepSums) -> float:
        return self.times * brute_force_seconds(sums) + self.constant_s

    def run(self, sums: StepSums) -> float:
        seconds = self.exact(sums) * self.rng.lognormvariate(0.0, self.noise)
        return seconds * (100.0 if self.rng.random() < self.outlier_share else 1.0)

    def train(self, predictor: StepPredictor, steps: Steps, count: int) -> None:
        for _ in range(count):
            sums = steps(self.rng)
            predictor.observe(sums, self.run(sums))

    def relative_error(self, predict: Predict, steps: Steps, quantile: float = 0.9) -> float:
        """Against the machine without noise, over fresh steps."""
        fresh = [steps(self.rng) for _ in range(200)]
        errors = [abs(predict(sums) / self.exact(sums) - 1) for sums in fresh]
        return float(np.quantile(errors, quantile))


def brute_force_seconds(sums: StepSums) -> float:
    """The coefficients' seconds, one product a sum."""
    c = COEFFICIENTS
    return (
        c.step_s
        + c.row_s * (sums.decode_rows + sums.prefill_rows)
        + c.decode_token_s * sums.decode_rows
        + c.decode_context_token_s * sums.decode_context_tokens
        + c.decode_selected_token_s * sums.decode_selected_tokens
        + c.prefill_token_s * sums.prefill_tokens
        + c.prefill_context_token_s * sums.prefill_context_tokens
        + c.prefill_selected_token_s * sums.prefill_selected_tokens
    )


def line(scale: float, constant_s: float) -> Predict:
    return lambda sums: scale * brute_force_seconds(sums) + constant_s


def trained(seed: int, steps: Steps = prefill_step, count: int = 100) -> StepPredictor:
    predictor = StepPredictor(COEFFICIENTS, TOP_K)
    Machine(seed).train(predictor, steps, count)
    return predictor


# Sums


@given(start=st.integers(0, 300), count=st.integers(0, 300), top_k=st.integers(0, 400))
def test_a_chunk_has_the_sums_of_its_tokens(start: int, count: int, top_k: int) -> None:
    contexts = range(start + 1, start + count + 1)
    expected = StepSums(
        prefill_rows=1 if count else 0,
        prefill_tokens=count,
        prefill_context_tokens=sum(contexts),
        prefill_selected_tokens=sum(min(context, top_k or context) for context in contexts),
    )
    assert StepSums.prefill_chunk(start, count, top_k) == expected


@given(contexts=st.lists(st.integers(1, 10_000), max_size=20), top_k=st.integers(0, 4000))
def test_rows_add_up_to_the_sums_over_their_tokens(contexts: list[int], top_k: int) -> None:
    total = sum((StepSums.decode_row(c, top_k) for c in contexts), StepSums())
    assert total.decode_rows == len(contexts)
    assert total.decode_context_tokens == sum(contexts)
    assert total.decode_selected_tokens == sum(min(c, top_k or c) for c in contexts)


@given(left=SUMS, right=SUMS)
def test_addition_is_by_field(left: StepSums, right: StepSums) -> None:
    total = left + right
    for name in StepSums.__struct_fields__:
        assert getattr(total, name) == getattr(left, name) + getattr(right, name)


# Prediction


@given(sums=SUMS)
def test_without_steps_the_coefficients_hold(sums: StepSums) -> None:
    predictor = StepPredictor(COEFFICIENTS, TOP_K)
    expected = brute_force_seconds(sums) if sums != StepSums() else 0.0
    assert predictor.predict(sums) == pytest.approx(expected, rel=1e-12)


@settings(deadline=None)
@given(
    coefficients=st.sampled_from(
        [
            COEFFICIENTS,
            StepCoefficients(**NO_SECONDS),
            StepCoefficients(**NO_SECONDS | {"row_s": 1}),
        ]
    ),
    steps=st.lists(st.tuples(SUMS, STEP_SECONDS), max_size=40),
    sums=SUMS,
    name=st.sampled_from(StepSums.__struct_fields__),
    more=st.integers(1, 10**6),
)
def test_prediction_rises_with_every_sum_whatever_was_observed(
    coefficients: StepCoefficients,
    steps: list[tuple[StepSums, float]],
    sums: StepSums,
    name: str,
    more: int,
) -> None:
    predictor = StepPredictor(coefficients, TOP_K)
    for observed, seconds in steps:
        if observed != StepSums():
            predictor.observe(observed, seconds)
    larger = msgspec.structs.replace(sums, **{name: getattr(sums, name) + more})
    assert 0 <= predictor.predict(sums) <= predictor.predict(larger) < float("inf")


@pytest.mark.parametrize("power", [-1.0, 2.0])
def test_scale_and_intercept_stay_positive_where_a_line_through_the_steps_has_none(
    power: float,
) -> None:
    predictor, rng = StepPredictor(COEFFICIENTS, TOP_K), random.Random(0)
    works, times = [], []
    for _ in range(100):
        sums = StepSums(rows := rng.randint(16, 256), rows * 9000, rows * TOP_K)
        works.append(float(rows))
        times.append(0.02 * (rows / 100) ** power)
        predictor.observe(sums, times[-1])
        fit = predictor.error.decode
        assert fit.scale >= 0
        assert fit.intercept_s > 0
    assert min(np.polyfit(works, times, 1)) < 0
    assert 0.005 < predictor.predict(StepSums(100, 100 * 9000, 100 * TOP_K)) < 0.05


def test_prefill_takes_no_less_than_the_decode_rows_alone() -> None:
    predictor = StepPredictor(COEFFICIENTS, TOP_K)
    Machine(0, times=50.0).train(predictor, decode_step, 30)
    Machine(0, times=0.1, constant_s=0.0).train(predictor, prefill_step, 30)
    decodes = equal_step(random.Random(0))
    mixed = decodes + StepSums.prefill_chunk(0, 1, TOP_K)
    assert predictor.predict(mixed) == predictor.predict(decodes)
    assert predictor.predict(mixed) > 10 * predictor.predict(StepSums.prefill_chunk(0, 1, TOP_K))


# Calibration


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("steps", [decode_step, prefill_step])
@pytest.mark.parametrize(
    ("times", "constant_s"), [(1.0, 0.0), (3.0, 0.01), (1000.0, 0.0), (0.001, 0.0), (1.0, 0.2)]
)
def test_a_slower_machine_is_learned_in_tens_of_steps(
    times: float, constant_s: float, steps: Steps, seed: int
) -> None:
    machine = Machine(seed, times=times, constant_s=constant_s)
    predictor = StepPredictor(COEFFICIENTS, TOP_K)
    machine.train(predictor, steps, 40)
    assert machine.relative_error(predictor.predict, steps) < 0.1
    assert machine.relative_error(predictor.predict, steps, 0.5) < 0.05


@pytest.mark.parametrize("steps", [decode_step, prefill_step])
def test_it_predicts_as_well_as_least_squares_over_the_same_steps(steps: Steps) -> None:
    ours, least_squares = [], []
    for seed in range(20):
        machine, predictor = Machine(seed), StepPredictor(COEFFICIENTS, TOP_K)
        works, times = [], []
        for _ in range(40):
            sums = steps(machine.rng)
            works.append(brute_force_seconds(sums))
            times.append(machine.run(sums))
            predictor.observe(sums, times[-1])
        seconds = np.array(times)
        design = np.stack([np.array(works), np.ones(40)], axis=1) / seconds[:, None]
        (scale, constant_s), *_ = np.linalg.lstsq(design, np.ones(40), rcond=None)
        fresh = machine.rng.getstate()
        ours.append(machine.relative_error(predictor.predict, steps, 1.0))
        machine.rng.setstate(fresh)
        least_squares.append(machine.relative_error(line(scale, constant_s), steps, 1.0))
    # Its memory is finite and its residuals bounded, so it cannot be quite as sharp.
    assert statistics.mean(ours) < 1.5 * statistics.mean(least_squares)


@pytest.mark.parametrize("seed", range(4))
def test_outliers_move_little(seed: int) -> None:
    clean, dirty = Machine(seed), Machine(seed)
    dirty.outlier_share = 0.1
    reference, predictor = trained(seed), trained(seed)
    clean.train(reference, prefill_step, 200)
    dirty.train(predictor, prefill_step, 200)
    assert dirty.relative_error(predictor.predict, prefill_step, 0.5) < 0.08
    assert clean.relative_error(reference.predict, prefill_step, 0.5) < 0.03


@pytest.mark.parametrize("times_slower", [5.0, 1e4])
def test_one_outlier_moves_a_settled_prediction_by_a_percent_or_so(times_slower: float) -> None:
    predictor = trained(0)
    sums = prefill_step(random.Random(1))
    before = predictor.predict(sums)
    predictor.observe(sums, before * times_slower)
    assert before < predictor.predict(sums) < 1.02 * before


def tiny_step(rng: random.Random) -> StepSums:
    return StepSums.decode_row(rng.randint(1, 100), TOP_K)


@pytest.mark.parametrize("seed", range(4))
def test_an_outlier_moves_little_after_a_start_at_another_size(seed: int) -> None:
    machine, predictor = Machine(seed, times=1.0, constant_s=0.2), trained(seed, tiny_step, 8)
    machine.train(predictor, tiny_step, 40)
    machine.train(predictor, decode_step, 40)
    sums = StepSums(128, 128 * 60_000, 128 * TOP_K)
    before = predictor.predict(sums)
    predictor.observe(sums, 100 * before)
    assert predictor.predict(sums) < 1.05 * before


@pytest.mark.parametrize("compile_seconds", [1.0, 100.0])
def test_a_slow_first_step_is_not_believed(compile_seconds: float) -> None:
    predictor, machine = StepPredictor(COEFFICIENTS, TOP_K), Machine(0)
    sums = equal_step(machine.rng)
    before = predictor.predict(sums)
    predictor.observe(sums, compile_seconds)
    assert predictor.predict(sums) == before
    machine.train(predictor, decode_step, 30)
    assert machine.relative_error(predictor.predict, decode_step) < 0.1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("times", [0.6, 15.0])
def test_another_machine_is_noticed(times: float, seed: int) -> None:
    predictor, machine = trained(seed), Machine(seed, times=times)
    machine.train(predictor, prefill_step, 30)
    assert machine.relative_error(predictor.predict, prefill_step) < 0.1


@pytest.mark.parametrize("seed", range(4))
def test_drift_is_followed(seed: int) -> None:
    predictor, machine = trained(seed), Machine(seed)
    for _ in range(300):
        machine.times *= 1.002
        machine.constant_s *= 1.002
        machine.train(predictor, prefill_step, 1)
    assert machine.times > 1.8 * Machine(seed).times
    assert machine.relative_error(predictor.predict, prefill_step, 0.5) < 0.1


@pytest.mark.parametrize("seed", range(4))
def test_equal_steps_are_predicted_and_others_stay_in_proportion(seed: int) -> None:
    machine, predictor = Machine(seed), StepPredictor(COEFFICIENTS, TOP_K)
    machine.train(predictor, equal_step, 100)
    assert machine.relative_error(predictor.predict, equal_step, 1.0) < 0.04
    sums = equal_step(machine.rng)
    small = StepSums(1, 9000, TOP_K)
    large = StepSums(8 * 32, 8 * 32 * 9000, 8 * 32 * TOP_K)
    at_size = predictor.predict(sums) / brute_force_seconds(sums)
    for other in (small, large):
        assert predictor.predict(other) / brute_force_seconds(other) == pytest.approx(
            at_size, rel=0.1
        )


@pytest.mark.parametrize("seed", range(4))
def test_what_varied_steps_taught_outlasts_equal_ones(seed: int) -> None:
    machine, predictor = Machine(seed), trained(seed, decode_step)
    machine.train(predictor, equal_step, 1000)
    assert machine.relative_error(predictor.predict, decode_step, 1.0) < 0.1


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(SUMS, STEP_SECONDS), max_size=40),
    sums=SUMS.filter(lambda sums: sums != StepSums()),
    seconds=STEP_SECONDS,
)
def test_equal_steps_win_whatever_came_before(
    steps: list[tuple[StepSums, float]], sums: StepSums, seconds: float
) -> None:
    predictor = StepPredictor(COEFFICIENTS, TOP_K)
    for observed, took in steps:
        if observed != StepSums():
            predictor.observe(observed, took)
    # A floor on prefill from the decode phase is another phase's business: train both.
    decodes = msgspec.structs.replace(
        sums,
        prefill_rows=0,
        prefill_tokens=0,
        prefill_context_tokens=0,
        prefill_selected_tokens=0,
    )
    for _ in range(150):
        for step in (decodes, sums):
            if step != StepSums():
                predictor.observe(step, seconds)
    assert predictor.predict(sums) == pytest.approx(seconds, rel=0.1)


def test_a_phase_without_steps_follows_the_other() -> None:
    machine, predictor = Machine(0, times=40.0, constant_s=0.0), StepPredictor(COEFFICIENTS, TOP_K)
    machine.train(predictor, decode_step, 40)
    assert machine.relative_error(predictor.predict, prefill_step) < 0.1
    fit = predictor.error
    assert fit.prefill.steps == 0
    assert (fit.prefill.scale, fit.prefill.intercept_s) == (
        fit.decode.scale,
        fit.decode.intercept_s,
    )


def test_phases_with_steps_of_their_own_keep_apart() -> None:
    predictor = StepPredictor(COEFFICIENTS, TOP_K)
    slow, fast = Machine(0, times=8.0), Machine(1, times=2.0)
    for _ in range(60):
        slow.train(predictor, prefill_step, 1)
        fast.train(predictor, decode_step, 1)
    assert slow.relative_error(predictor.predict, prefill_step) < 0.1
    assert fast.relative_error(predictor.predict, decode_step) < 0.1


# Its own error


def test_the_error_is_that_of_predictions_made_before_learning() -> None:
    predictor, machine = StepPredictor(COEFFICIENTS, TOP_K), Machine(0)
    assert predictor.error.decode.median_relative_error is None
    errors = []
    for steps in range(1, 101):
        sums = decode_step(machine.rng)
        seconds = machine.run(sums)
        errors.append(abs(predictor.predict(sums) - seconds) / seconds)
        predictor.observe(sums, seconds)
        fit = predictor.error.decode
        assert fit.steps == steps
        assert fit.median_relative_error == statistics.median(errors[-64:])
    assert statistics.median(errors[-64:]) < 0.06  # noise of 5 %: median 3.4 %
    assert predictor.error.prefill.median_relative_error is None


# The largest chunk


@settings(deadline=None)
@given(
    seed=st.integers(0, 3),
    decodes=st.integers(0, 64),
    start=st.integers(0, 100_000),
    limit=st.integers(0, 20_000),
    budget_seconds=st.floats(1e-3, 2.0),
)
def test_the_largest_chunk_fits_and_one_more_token_does_not(
    seed: int, decodes: int, start: int, limit: int, budget_seconds: float
) -> None:
    predictor = PREDICTORS[seed]
    sums = StepSums(decodes, decodes * 9000, decodes * TOP_K)
    count = predictor.largest_chunk(sums, start, limit, budget_seconds)
    assert 0 <= count <= limit

    def seconds(tokens: int) -> float:
        return predictor.predict(sums + StepSums.prefill_chunk(start, tokens, TOP_K))

    if count:
        assert seconds(count) <= budget_seconds
    if count < limit:
        assert seconds(count + 1) > budget_seconds


PREDICTORS = [
    StepPredictor(COEFFICIENTS, TOP_K),
    trained(1),
    trained(2, decode_step),
    trained(3, prefill_step),
]
Machine(3, times=0.2, constant_s=0.05).train(PREDICTORS[3], decode_step, 50)


def test_the_largest_chunk_beside_one_that_is_planned() -> None:
    predictor = trained(1)
    planned = StepSums.prefill_chunk(4000, 700, TOP_K)
    count = predictor.largest_chunk(planned, 0, 8192, 0.3)
    assert 0 < count < predictor.largest_chunk(StepSums(), 0, 8192, 0.3)
    assert predictor.predict(planned + StepSums.prefill_chunk(0, count, TOP_K)) <= 0.3


def test_a_chunk_that_may_take_any_time_is_the_whole_limit() -> None:
    assert StepPredictor(COEFFICIENTS, TOP_K).largest_chunk(StepSums(), 0, 8192, 3600.0) == 8192


# Bad input


@pytest.mark.parametrize("name", StepSums.__struct_fields__)
@pytest.mark.parametrize("value", [-1, 2**64, float("nan"), float("inf")])
def test_a_sum_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(CostError, match=rf"^{name} is .*allowed: 0 to "):
        StepSums(**{name: value})


@pytest.mark.parametrize("name", StepCoefficients.__struct_fields__)
@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_a_coefficient_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(CostError, match=rf"^{name} is .*allowed: 0 to "):
        StepCoefficients(**NO_SECONDS | {name: value})


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_out_of_range_is_named_and_not_learned(value: float) -> None:
    predictor = StepPredictor(COEFFICIENTS, TOP_K)
    with pytest.raises(CostError, match=r"^seconds is .*allowed: above 0"):
        predictor.observe(StepSums.decode_row(10, TOP_K), value)
    with pytest.raises(CostError, match=r"^budget_seconds is .*allowed: above 0"):
        predictor.largest_chunk(StepSums(), 0, 10, value)
    assert predictor.error.decode.steps == 0


def test_other_arguments_out_of_range_are_named() -> None:
    predictor = StepPredictor(COEFFICIENTS, TOP_K)
    with pytest.raises(CostError, match=r"^start is -1"):
        predictor.largest_chunk(StepSums(), -1, 10, 1.0)
    with pytest.raises(CostError, match=r"^limit is -1"):
        predictor.largest_chunk(StepSums(), 0, -1, 1.0)
    with pytest.raises(CostError, match=r"^count is -1"):
        StepSums.prefill_chunk(0, -1, TOP_K)
    with pytest.raises(CostError, match=r"^context_tokens is -1"):
        StepSums.decode_row(-1, TOP_K)
    with pytest.raises(CostError, match=r"^top_k is -1"):
        StepPredictor(COEFFICIENTS, -1)
    with pytest.raises(CostError, match=r"^sums are all 0"):
        predictor.observe(StepSums(), 1.0)
