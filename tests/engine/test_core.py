from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest

from engine.core import EngineCore, Rates
from engine.intake import Intake, ReadySubmit
from engine.messages import (
    Abort,
    Accepted,
    FromEngine,
    Output,
    Outputs,
    Refused,
    Shutdown,
    Snapshot,
    Span,
    Stop,
    Submit,
    ToEngine,
    TurnEnded,
)
from scheduler.admission import UNKNOWN_RETRY_S
from scheduler.plan import Row, StepPlan, StepResult
from scheduler.request import Sampling
from tests.engine.replica import TinyReplica, prompt_of

LONG = Sampling(max_tokens=500, temperature=0.0, ignore_eos=True)
SHORT = Sampling(max_tokens=3, temperature=0.0, ignore_eos=True)


class Conversation:
    """Runs the loop in this thread; `answers` react to what it sends, as an API would."""

    def __init__(self, **limits: Any) -> None:
        self.replica = TinyReplica(**limits)
        self.inbox: SimpleQueue[ToEngine | None] = SimpleQueue()
        self.core = EngineCore(self.replica.scheduler, self.replica.runner, self.inbox, self.send)
        self.sent: list[FromEngine] = []
        self.open: set[tuple[str, int]] = set()
        self.react: Callable[[Output], None] = lambda output: None

    @property
    def outputs(self) -> list[Output]:
        return [o for message in self.sent if isinstance(message, Outputs) for o in message.outputs]

    def send(self, message: FromEngine) -> None:
        self.sent.append(message)
        if isinstance(message, Outputs):
            for output in message.outputs:
                if output.finish:
                    self.open.remove((output.id, output.choice))  # KeyError: the second terminal
                else:
                    assert (output.id, output.choice) in self.open, "news after the terminal event"
                self.react(output)
            if not self.open:
                self.inbox.put(Shutdown())

    def run(self, *messages: ToEngine) -> None:
        for message in messages:
            self.inbox.put(message)
            if isinstance(message, Submit):
                self.open |= {(message.id, choice) for choice in range(message.n)}
        self.core.run()


def test_a_request_is_accepted_then_answered_with_one_terminal_event_per_choice() -> None:
    talk = Conversation()
    talk.run(Submit("a", prompt_of(70), SHORT, n=2), Submit("b", prompt_of(5), SHORT))
    assert [m.id for m in talk.sent if isinstance(m, Accepted)] == ["a", "b"]
    ended = {(o.id, o.choice): o.finish for o in talk.outputs if o.finish}
    assert ended == {("a", 0): "length", ("a", 1): "length", ("b", 0): "length"}
    counts = {name: 0 for name in (("a", 0), ("a", 1), ("b", 0))}
    for output in talk.outputs:
        counts[output.id, output.choice] += len(output.token_ids)
    assert set(counts.values()) == {3}


def test_an_abort_frees_every_page_before_the_next_step() -> None:
    talk = Conversation()
    seen: list[tuple[str, int]] = []

    def react(output: Output) -> None:
        if output.finish:
            seen.append((output.finish, talk.replica.scheduler.pool.live_pages))
        elif talk.inbox.empty():
            talk.inbox.put(Abort("a"))

    talk.react = react
    talk.run(Submit("a", prompt_of(200), LONG))
    assert seen == [("abort", 0)]
    assert len([o for o in talk.outputs if o.token_ids]) == 1, "not one step more"


def test_a_stop_ends_one_choice_and_the_other_goes_on() -> None:
    talk = Conversation()

    def react(output: Output) -> None:
        if output.choice == 1 and not output.finish and talk.inbox.empty():
            talk.inbox.put(Stop("a", 1, 1))

    talk.react = react
    talk.run(Submit("a", prompt_of(70), Sampling(max_tokens=9, ignore_eos=True), n=2))
    assert {(o.choice, o.finish) for o in talk.outputs if o.finish} == {(0, "length"), (1, "stop")}
    assert sum(len(o.token_ids) for o in talk.outputs if o.choice == 1) == 1


def test_a_request_that_waits_can_be_aborted() -> None:
    talk = Conversation(max_num_seqs=1)

    def react(output: Output) -> None:
        if output.id == "running" and not output.finish and ("waiting", 0) in talk.open:
            talk.inbox.put(Abort("waiting"))

    talk.react = react
    talk.run(Submit("running", prompt_of(9), SHORT), Submit("waiting", prompt_of(9), SHORT))
    assert {(o.id, o.finish) for o in talk.outputs if o.finish} == {
        ("running", "length"),
        ("waiting", "abort"),
    }


def test_the_stop_token_is_named() -> None:
    talk = Conversation()
    how = Sampling(max_tokens=5, temperature=0.0, logit_bias={9: 100.0}, stop_token_ids=(9,))
    talk.run(Submit("a", prompt_of(9), how))
    assert talk.outputs[-1].finish == "stop"
    assert talk.outputs[-1].extras == {"stop_token": 9, "cached_tokens": 0}


def test_refusals_carry_status_field_and_when_to_come_back() -> None:
    talk = Conversation(max_queued_requests=1, max_num_seqs=1)
    for message in (
        Submit("first", prompt_of(20), SHORT),
        Submit("too many", prompt_of(20), SHORT),
        Submit("too long", prompt_of(64 * 32), SHORT),
    ):
        talk.inbox.put(message)
    talk.open = {("first", 0)}
    talk.core.run()
    refused = {m.id: m for m in talk.sent if isinstance(m, Refused)}
    assert refused.keys() == {"too many", "too long"}
    assert (refused["too many"].status, refused["too many"].code) == (429, "queue_full")
    retry_after = refused["too many"].retry_after
    assert retry_after == UNKNOWN_RETRY_S, "no step has run"
    assert (refused["too long"].status, refused["too long"].param) == (400, "messages")
    assert refused["too long"].retry_after is None
    assert {o.id for o in talk.outputs} == {"first"}


@pytest.mark.parametrize(
    ("kind", "why", "idle"),
    [
        ("reasoning", "answer", {"dead": 2, "stable": 1, "awaited": 0}),
        ("answer", "answer", {"dead": 0, "stable": 3, "awaited": 0}),
        ("reasoning", "tool_calls", {"dead": 0, "stable": 0, "awaited": 3}),
        ("reasoning", "length", {"dead": 0, "stable": 3, "awaited": 0}),
    ],
)
def test_the_end_of_a_turn_classifies_its_pages(kind: Any, why: Any, idle: dict[str, int]) -> None:
    talk = Conversation()
    spans = [Span(0, 100, "stable"), Span(100, 192, kind)]

    def react(output: Output) -> None:
        if output.finish:
            talk.inbox.put(TurnEnded("a", 0, why, spans))

    talk.react = react
    talk.run(Submit("a", prompt_of(200), SHORT))
    assert talk.replica.scheduler.pool.idle_pages == idle


def test_snapshots_add_up() -> None:
    talk = Conversation()
    talk.run(Submit("a", prompt_of(70), SHORT))
    last = talk.core.snapshot()
    assert last.live_pages == 0 and last.running == last.waiting == last.backlog_tokens == 0
    for snapshot in (last, *(m for m in talk.sent if isinstance(m, Snapshot))):
        pages = snapshot.live_pages + sum(snapshot.idle_pages.values()) + snapshot.free_pages
        assert pages == snapshot.total_pages == 32
    assert last.prefill_tokens_per_s > 0 and last.decode_tokens_per_s > 0


def test_the_loop_ends_when_the_api_has_gone() -> None:
    talk = Conversation()
    talk.inbox.put(Submit("a", prompt_of(70), LONG))
    talk.inbox.put(None)
    talk.core.run()
    assert not talk.outputs


def test_a_step_that_fails_ends_the_loop_with_its_error() -> None:
    talk = Conversation()
    with pytest.raises(IndexError):
        talk.run(Submit("a", [10**6], SHORT))


def test_rates_share_a_step_among_its_tokens() -> None:
    rates = Rates()
    rows = (Row(0, 40, 1, "last", "mqa"), Row(1, 0, 9, "none", "mha"))
    rates.observe(StepPlan(1, rows), StepResult(1, [5, -1], [None, None], 2.0))
    assert (rates.decode_tokens_per_s, rates.prefill_tokens_per_s) == (0.5, 5.0)
    rates.observe(StepPlan(2, ()), StepResult(2, [], [], 1.0))
    assert (rates.decode_tokens_per_s, rates.prefill_tokens_per_s) == (0.5, 5.0)
    rates.observe(StepPlan(3, rows[:1]), StepResult(3, [5], [None], 1.0))
    assert rates.decode_tokens_per_s == pytest.approx(0.6)
    assert rates.prefill_tokens_per_s == 5.0


def test_a_prompt_hashed_outside_the_loop_finds_the_same_pages() -> None:
    talk = Conversation()
    first, second = Submit("a", prompt_of(200), SHORT), Submit("b", prompt_of(200), SHORT)
    inbox, hashed = talk.inbox, SimpleQueue[ToEngine | None]()
    Intake(talk.replica.scheduler, hashed).take(second)
    prepared = hashed.get()
    assert isinstance(prepared, ReadySubmit) and len(prepared.keys) == 3

    def react(output: Output) -> None:
        if output.id == "a" and output.finish:
            talk.open.add(("b", 0))
            inbox.put(prepared)

    talk.react = react
    talk.run(first)
    (cached,) = [o.extras["cached_tokens"] for o in talk.outputs if o.id == "b" and o.extras]
    assert cached == 192


def test_the_form_of_the_next_turn_is_warm_when_its_message_comes() -> None:
    talk = Conversation()
    prompt, dropped = prompt_of(100), [*prompt_of(64), *prompt_of(128, seed=7)]
    spans = [Span(0, 64, "stable"), Span(64, 100, "reasoning")]

    def react(output: Output) -> None:
        if output.finish:
            talk.inbox.put(TurnEnded("a", 0, "answer", spans, next_prefix=dropped))

    talk.react = react
    talk.run(Submit("a", prompt, SHORT))
    scheduler = talk.replica.scheduler
    # Shutdown came right behind; what the loop would do when idle, step by step.
    assert talk.core.snapshot().pre_warms == 1 and scheduler.has_work
    while scheduler.has_work:
        talk.core._step()
    last = talk.core.snapshot()
    assert last.pre_warmed_tokens == 128, "the first page was there"
    assert (last.pre_warms, last.pre_warm_hit_tokens, last.live_pages) == (0, 0, 0)
    talk.open.add(("b", 0))
    assert scheduler.submit("b", [*dropped, *prompt_of(9)], SHORT) == 192
    while scheduler.has_work:
        talk.core._step()
    assert talk.core.snapshot().pre_warm_hit_tokens == 128


def test_snapshots_say_which_submits_they_have_seen() -> None:
    talk = Conversation(max_queued_requests=1)
    talk.inbox.put(Submit("too long", prompt_of(64 * 32), SHORT))
    talk.run(Submit("a", prompt_of(9), SHORT))
    assert talk.core.snapshot().submits == 2, "the refused one too"
