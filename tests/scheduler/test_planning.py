"""A step's budget: time where answers stream, scores always, and nobody starves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_model.predictor import StepCoefficients, StepPredictor
from cost_model.predictor import StepSums as CostSums
from scheduler.budget import Budget, StepSums
from scheduler.forms import FormPolicy
from scheduler.planning import PATIENCE_STEPS
from scheduler.request import Sampling
from scheduler.scheduler import Scheduler
from tests.scheduler.fake_predictor import LinearPredictor
from tests.scheduler.fake_runner import FakeRunner
from tests.scheduler.test_scheduler import NEVER_ENDS, PROMPT, Replica, config, spans


def timed(predictor: Any, **limits: Any) -> Replica:
    replica = Replica(**limits)
    replica.scheduler = Scheduler(replica.scheduler.config, predictor)
    replica.pool = replica.scheduler.pool
    replica.runner = FakeRunner(replica.scheduler.config, replica.pool)
    return replica


def test_beside_answers_prefill_gets_what_the_target_leaves() -> None:
    replica = timed(LinearPredictor(), inter_token_target_s=6.0, prefill_floor_tokens=1)
    replica.submit("a", PROMPT * 2, NEVER_ENDS)
    assert spans(replica.step()[0]) == [(0, 20)], "nobody streams: tokens alone bound the step"
    replica.submit("b", [2] * 9, NEVER_ENDS)
    assert spans(replica.step()[0]) == [(20, 1), (0, 5)]
    assert spans(replica.step()[0]) == [(21, 1), (5, 4)]
    assert spans(replica.step()[0]) == [(22, 1), (9, 1)]


def test_without_time_for_any_the_first_prompt_gets_its_floor() -> None:
    replica = timed(LinearPredictor(), inter_token_target_s=0.5, prefill_floor_tokens=3)
    replica.submit("a", [5, 6], NEVER_ENDS)
    replica.step()
    replica.submit("b", [2] * 7, NEVER_ENDS)
    replica.submit("c", [3] * 7, NEVER_ENDS)
    assert [spans(replica.step()[0])[1:] for _ in range(3)] == [[(0, 3)], [(3, 3)], [(6, 1)]]
    assert (0, 3) in spans(replica.step()[0])


@pytest.mark.parametrize("predictor", [None, LinearPredictor()])
def test_without_predictor_or_target_tokens_are_the_budget(predictor: Any) -> None:
    target_s = 1.0 if predictor is None else None
    replica = timed(predictor, inter_token_target_s=target_s, max_num_batched_tokens=8)
    replica.submit("a", [5, 6], NEVER_ENDS)
    replica.step()
    replica.submit("b", PROMPT, NEVER_ENDS)
    assert spans(replica.step()[0]) == [(2, 1), (0, 7)]


def test_the_predictor_learns_from_every_step_that_computed_something() -> None:
    predictor = LinearPredictor()
    replica = timed(predictor, inter_token_target_s=100.0)
    replica.submit("a", PROMPT, Sampling(max_tokens=2, ignore_eos=True))
    replica.finish()
    assert predictor.observed == [(0, 10, 0.01), (1, 0, 0.01)]


def test_the_cost_models_predictor_is_one() -> None:
    """A step of its own predictor stays inside the target, and fills it."""
    coefficients = StepCoefficients(
        decode_token_s=1e-4,
        decode_context_token_s=1e-6,
        decode_selected_token_s=1e-6,
        prefill_token_s=1e-3,
        prefill_context_token_s=1e-6,
        prefill_selected_token_s=1e-6,
        row_s=1e-4,
        step_s=1e-3,
    )
    predictor = StepPredictor(coefficients, 6)
    replica = timed(
        predictor,
        inter_token_target_s=0.01,
        prefill_floor_tokens=1,
        total_pages=64,
        max_model_len=200,
    )
    replica.submit("a", [5, 6], NEVER_ENDS)
    replica.step()
    replica.submit("b", [2] * 99, NEVER_ENDS)
    plan, _ = replica.step()
    count = plan.rows[1].count
    again = StepPredictor(coefficients, 6)
    again.observe(CostSums.prefill_chunk(0, 2, 6), 0.01)
    decode = CostSums.decode_row(3, 6)
    assert 1 < count < 98
    assert again.predict(decode + CostSums.prefill_chunk(0, count, 6)) <= 0.01
    assert again.predict(decode + CostSums.prefill_chunk(0, count + 1, 6)) > 0.01


@given(st.integers(0, 5000), st.integers(1, 3000), st.integers(1, 3000))
def test_sums_are_those_of_the_cost_model(start: int, count: int, top_k: int) -> None:
    sums = StepSums()
    sums.add_chunk(start, count, top_k)
    theirs = CostSums.prefill_chunk(start, count, top_k)
    for name in CostSums.__struct_fields__:
        assert getattr(sums, name) == getattr(theirs, name), name


@given(
    st.sampled_from(["auto", "sparse", "dense"]),
    st.integers(0, 60),
    st.integers(1, 60),
    st.integers(0, 5000),
)
def test_a_chunk_is_the_largest_whose_scores_fit(
    attention: Any, start: int, wanted: int, room: int
) -> None:
    policy = FormPolicy(attention, top_k=6, break_even_tokens=14)
    limits = config(forms=policy, indexer_workspace_bytes=room)
    count = Budget(limits).fit(start, wanted)

    def fits(count: int) -> bool:
        scored = policy.form(start, count) in ("mqa", "masked_mha")
        return not scored or count * (start + count) * 4 <= room

    largest = max((n for n in range(1, wanted + 1) if fits(n)), default=1)
    assert count == largest, "or one token, when none fits: the first row always runs"


def test_decode_rows_left_out_come_first_in_the_next_step() -> None:
    """Scores for two rows of four."""
    replica = Replica(indexer_workspace_bytes=80, total_pages=32)
    for name in "abcd":
        replica.submit(name, [5, 6, 7, 8, 5, 6, 7, 8 + ord(name)], NEVER_ENDS)
    while len(replica.scheduler._running.decoding) < 4:
        replica.step()
    seen: list[str] = []
    for _ in range(6):
        names = {s.slot: s.request_id for s in replica.scheduler.running}
        seen += [names[row.slot] for row in replica.step()[0].rows]
    counts = [seen.count(name) for name in "abcd"]
    assert max(counts) - min(counts) <= 1, seen


def test_a_prompt_goes_on_though_decode_rows_fill_every_step() -> None:
    replica = Replica(max_num_batched_tokens=2, total_pages=32, max_model_len=100)
    replica.submit("a", [5, 6], NEVER_ENDS)
    replica.submit("b", [6, 5], NEVER_ENDS)
    while len(replica.scheduler._running.decoding) < 2:
        replica.step()
    replica.submit("c", [7] * 5, NEVER_ENDS)
    steps = 0
    while len(replica.scheduler._running.decoding) < 3:
        plan, _ = replica.step()
        assert sum(row.count for row in plan.rows) == 2, "every step is full"
        steps += 1
    assert steps == 3 * (PATIENCE_STEPS + 1), "two tokens, two tokens, one"


def test_a_result_must_have_a_token_for_every_row() -> None:
    replica = Replica()
    replica.submit("a", PROMPT)
    plan = replica.scheduler.plan()
    result = replica.runner.execute(plan)
    result.token_ids.append(3)
    with pytest.raises(ValueError, match="2 tokens and 1 logprobs, 1 rows"):
        replica.scheduler.commit(result)
