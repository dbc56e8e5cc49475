"""engine.step_stats: records of steps against the plans themselves, and what the loop sends."""

from __future__ import annotations

import pytest

from engine.messages import Snapshot, Span, Steps, StepStats, Submit, TurnEnded
from engine.step_stats import StepRecorder
from scheduler.config import SchedulerConfig
from scheduler.forms import FormPolicy
from scheduler.plan import StepPlan
from scheduler.request import Sampling
from scheduler.scheduler import Scheduler
from tests.engine.replica import prompt_of
from tests.engine.test_core import SHORT, Conversation
from tests.scheduler.fake_runner import FakeRunner

TOP_K = 6
STEP_S, EXECUTION_S = 1.0, 0.75
TEN = Sampling(max_tokens=10, ignore_eos=True)


class Replica:
    """A scheduler without a model, whose steps take a second each and are recorded."""

    def __init__(self, total_pages: int = 16) -> None:
        self.scheduler = Scheduler(
            SchedulerConfig(
                total_pages=total_pages,
                page_tokens=4,
                max_model_len=40,
                max_num_seqs=4,
                max_num_batched_tokens=16,
                max_queued_requests=8,
                indexer_workspace_bytes=1 << 20,
                forms=FormPolicy("auto", top_k=TOP_K, break_even_tokens=14),
                eos_token_ids=(1,),
            )
        )
        self.runner = FakeRunner(self.scheduler.config, self.scheduler.pool)
        self.recorder = StepRecorder()
        self.now_s = 100.0
        self.plans: list[StepPlan] = []

    def submit(self, name: str, prompt: list[int], sampling: Sampling = TEN, n: int = 1) -> None:
        self.runner.owners[name] = "/"
        assert isinstance(self.scheduler.submit(name, prompt, sampling, n=n), int)
        self.recorder.submitted(name, n, self.now_s)

    def step(self) -> None:
        begin_s = self.now_s
        plan = self.scheduler.plan(begin_s)
        sums = self.scheduler.step_sums
        news = self.scheduler.commit(self.runner.execute(plan))
        self.now_s += STEP_S
        self.plans.append(plan)
        self.recorder.step(
            plan,
            sums,
            news,
            begin_s=begin_s,
            end_s=self.now_s,
            seconds=EXECUTION_S,
            predicted_s=0.5,
            pre_warmed_tokens=self.scheduler.pre_warmer.computed_tokens,
        )
        self.recorder.ended(news)

    def finish(self) -> list[StepStats]:
        while self.scheduler.has_work:
            self.step()
        taken = self.recorder.take()
        assert taken is not None
        return taken.steps


def test_every_row_is_in_the_sums() -> None:
    replica = Replica()
    replica.submit("a", [5] * 21, n=2)
    replica.submit("b", [6] * 3)
    steps = replica.finish()
    assert len(steps) == len(replica.plans)
    for plan, step in zip(replica.plans, steps, strict=True):
        decodes = [row for row in plan.rows if row.count == 1 and row.sample == "last"]
        decodes = [row for row in decodes if (row.start, 1, row.form) not in step.prefills]
        assert len(decodes) == step.decode_rows
        assert len(plan.rows) == step.decode_rows + len(step.prefills)
        contexts = [row.start + 1 for row in decodes]
        assert step.decode_context_tokens == sum(contexts)
        assert step.decode_selected_tokens == sum(min(one, TOP_K) for one in contexts)
        scored = [row.start + 1 for row in decodes if row.form == "mqa"]
        assert step.decode_scored_tokens == sum(scored)
        assert (step.seconds, step.predicted_s) == (EXECUTION_S, 0.5)
        assert step.overhead_s == pytest.approx(STEP_S - EXECUTION_S)
    assert sum(len(step.prompts) for step in steps) == 3
    assert sum(count for step in steps for _, count, _ in step.prefills) == replica_tokens(steps)


def replica_tokens(steps: list[StepStats]) -> int:
    """Prompt tokens that had to be computed."""
    return sum(prompt - cached for step in steps for prompt, cached in step.prompts)


def test_every_token_is_a_first_one_or_ends_a_gap() -> None:
    replica = Replica()
    replica.submit("a", [5] * 9)
    replica.step()
    replica.submit("b", [6] * 30)
    steps = replica.finish()
    assert sum(step.first_tokens for step in steps) == 2
    gaps = [gap for step in steps for gap in step.gaps]
    assert sum(tokens for _, tokens in gaps) == 2 * (TEN.max_tokens - 1)
    assert {seconds for seconds, _ in gaps} == {STEP_S}
    assert max(len(step.gaps) for step in steps) == 1, "one gap, however many tokens"


def test_a_preempted_choice_waits_once_and_has_a_long_gap() -> None:
    replica = Replica(total_pages=10)
    for name in "abc":
        replica.submit(name, [ord(name)] * 9, Sampling(max_tokens=12, ignore_eos=True))
    steps = replica.finish()
    assert replica.scheduler.preemptions > 0
    assert sum(len(step.waits_s) for step in steps) == 3
    assert sum(step.first_tokens for step in steps) == 3
    seconds = [seconds for step in steps for seconds, _ in step.gaps]
    assert max(seconds) > STEP_S


def test_the_wait_is_from_the_queue_to_the_slot() -> None:
    replica = Replica()
    replica.submit("a", [5] * 9)
    replica.now_s += 3
    steps = replica.finish()
    assert [wait for step in steps for wait in step.waits_s] == [3.0]


def test_what_ends_in_the_queue_leaves_nothing_behind() -> None:
    replica = Replica()
    replica.submit("a", [5] * 9)
    replica.recorder.ended(replica.scheduler.abort("a"))
    assert replica.recorder.take() is None
    replica.submit("a", [5] * 9)
    steps = replica.finish()
    assert [wait for step in steps for wait in step.waits_s] == [0.0]
    assert replica.recorder.take() is None


def test_the_loop_sends_every_step_before_its_snapshots() -> None:
    talk = Conversation()
    talk.run(Submit("a", prompt_of(70), SHORT, n=2), Submit("b", prompt_of(70), SHORT))
    messages = [*talk.sent, talk.core.steps.take() or Steps([])]
    steps = [step for message in messages if isinstance(message, Steps) for step in message.steps]
    tokens = sum(len(output.token_ids) for output in talk.outputs)
    sampled = sum(step.first_tokens for step in steps) + sum(n for s in steps for _, n in s.gaps)
    assert sampled == tokens == 3 * SHORT.max_tokens
    assert all(step.seconds > 0 and step.predicted_s == 0 for step in steps), "no predictor"
    for place, message in enumerate(talk.sent):
        if isinstance(message, Steps):
            assert message.steps and isinstance(talk.sent[place + 1], Snapshot)


@pytest.mark.parametrize(
    ("why", "counted"), [("tool_calls", (5, 0)), ("answer", (0, 5)), ("length", (0, 0))]
)
def test_reasoning_is_counted_by_its_fate(why: str, counted: tuple[int, int]) -> None:
    talk = Conversation()
    spans = [Span(0, 9, "stable"), Span(9, 12, "reasoning"), Span(12, 14, "tool")]
    spans.append(Span(14, 16, "reasoning"))
    talk.run(TurnEnded("gone", 0, why, spans), Submit("a", prompt_of(9), SHORT))  # type: ignore[arg-type]
    snapshot = talk.core.snapshot()
    kept_and_dropped = (snapshot.kept_reasoning_tokens, snapshot.dropped_reasoning_tokens)
    assert kept_and_dropped == counted
