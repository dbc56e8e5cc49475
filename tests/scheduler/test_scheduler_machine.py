"""The scheduler under random traffic, on pools so small that it must preempt and evict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.config import SchedulerConfig
from scheduler.forms import FormPolicy
from scheduler.outcome import Choice, Refusal
from scheduler.plan import StepPlan, StepResult
from scheduler.request import Sampling
from scheduler.scheduler import Scheduler
from tests.scheduler.fake_runner import FakeRunner

PAGE_TOKENS = 4
BASE = [5, 6, 7, 8, 5, 6, 7, 9, 2, 3, 4, 5, 6, 6, 6, 6]
"""Prompts are prefixes of it with a tail, so that most share pages."""


class Traffic(RuleBasedStateMachine):
    @initialize(
        total_pages=st.integers(3, 12),
        max_num_seqs=st.integers(1, 4),
        batched_tokens=st.sampled_from([1, 2, 5, 16, 64]),
        workspace_bytes=st.sampled_from([1, 40, 300, 10_000]),
        attention=st.sampled_from(["auto", "sparse", "dense"]),
        prefix_caching=st.booleans(),
        queue=st.integers(1, 8),
    )
    def start(
        self,
        total_pages: int,
        max_num_seqs: int,
        batched_tokens: int,
        workspace_bytes: int,
        attention: Any,
        prefix_caching: bool,
        queue: int,
    ) -> None:
        self.config = SchedulerConfig(
            total_pages=total_pages,
            page_tokens=PAGE_TOKENS,
            max_model_len=total_pages * PAGE_TOKENS,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=batched_tokens,
            max_queued_requests=queue,
            indexer_workspace_bytes=workspace_bytes,
            forms=FormPolicy(attention, top_k=6, break_even_tokens=14),
            eos_token_ids=(1,),
            prefix_caching=prefix_caching,
        )
        self.scheduler = Scheduler(self.config)
        self.runner = FakeRunner(self.config, self.scheduler.pool)
        self.open: dict[tuple[str, int], Sampling] = {}
        """Choices without a terminal event."""
        self.generated: Counter[tuple[str, int]] = Counter()
        self.ended: list[tuple[str, int]] = []
        self.log: list[tuple[Callable[[Scheduler], Any], Any]] = []
        self.submitted = 0

    def do(self, act: Callable[[Scheduler], Any]) -> Any:
        """Acts on the scheduler and remembers what it answered, for the replay."""
        answer = act(self.scheduler)
        self.log.append((act, answer))
        return answer

    @rule(
        shared=st.integers(0, len(BASE)),
        tail=st.lists(st.integers(2, 4), max_size=3),
        n=st.integers(1, 3),
        priority=st.integers(0, 2),
        owner=st.sampled_from([("", ""), ("", "salt"), ("tenant", "")]),
        max_tokens=st.integers(1, 12),
        ignore_eos=st.booleans(),
    )
    def submit(
        self,
        shared: int,
        tail: list[int],
        n: int,
        priority: int,
        owner: tuple[str, str],
        max_tokens: int,
        ignore_eos: bool,
    ) -> None:
        prompt = BASE[:shared] + tail
        request_id = f"r{self.submitted}"
        self.submitted += 1
        sampling = Sampling(max_tokens=max_tokens, ignore_eos=ignore_eos)
        room = self.config.max_queued_requests - len(self.scheduler.waiting)
        self.runner.owners[request_id] = repr(owner)
        answer = self.do(
            lambda scheduler: scheduler.submit(
                request_id,
                list(prompt),
                sampling,
                n=n,
                priority=priority,
                tenant=owner[0],
                cache_salt=owner[1],
            )
        )
        fits = 1 <= len(prompt) < self.config.max_model_len
        if n > room or not fits:
            assert isinstance(answer, Refusal)
            assert answer.status == (429 if fits and n <= self.config.max_queued_requests else 400)
            return
        assert isinstance(answer, int)
        assert answer <= len(prompt) - 1 and answer % PAGE_TOKENS == 0
        for choice in range(n):
            self.open[request_id, choice] = sampling

    @precondition(lambda self: self.scheduler.has_work)
    @rule(steps=st.integers(1, 4))
    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        request_id, choice = data.draw(st.sampled_from(sorted(self.open)))
        at_token = data.draw(st.integers(0, 12))
        news = self.do(lambda scheduler: scheduler.stop(request_id, choice, at_token))
        assert [(c.request_id, c.choice, c.finish) for c in news] == [(request_id, choice, "stop")]
        self.take(news)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id, _ = data.draw(st.sampled_from(sorted(self.open)))
        choices = sorted(choice for other, choice in self.open if other == request_id)
        news = self.do(lambda scheduler: scheduler.abort(request_id))
        assert sorted(c.choice for c in news) == choices
        assert {c.finish for c in news} == {"abort"}
        self.take(news)

    @rule()
    def news_about_strangers_is_ignored(self) -> None:
        assert self.do(lambda scheduler: scheduler.abort("nobody")) == []
        assert self.do(lambda scheduler: scheduler.stop("nobody", 0, 1)) == []

    @precondition(lambda self: self.ended)
    @rule(
        data=st.data(),
        why=st.sampled_from(["tool_calls", "answer", "length", "aborted"]),
        flip=st.none() | st.integers(0, 20),
    )
    def turn_ended(self, data: st.DataObject, why: Any, flip: int | None) -> None:
        request_id, choice = data.draw(st.sampled_from(self.ended))
        self.do(lambda scheduler: scheduler.turn_ended(request_id, choice, why, flip))

    def step(self) -> StepPlan:
        decoding = {
            s.slot: s for s in self.scheduler.running if len(s.token_ids) - s.computed_tokens == 1
        }
        computed = self.runner.computed_tokens
        plan: StepPlan = self.do(lambda scheduler: scheduler.plan())
        self.check_decode_comes_first(plan, decoding)
        result: StepResult = self.runner.execute(plan)
        assert self.runner.computed_tokens - computed == sum(row.count for row in plan.rows)
        self.take(self.do(lambda scheduler: scheduler.commit(result)))
        return plan

    def check_decode_comes_first(self, plan: StepPlan, decoding: dict[int, Any]) -> None:
        """A decoding sequence that keeps its slot is left out only if decode rows fill a budget."""
        planned = [row.slot for row in plan.rows]
        first = [row for row in plan.rows if row.slot in decoding]
        assert list(plan.rows[: len(first)]) == first, "decode rows stand before prefill rows"
        for slot, sequence in decoding.items():
            if slot in planned or slot in plan.forget:
                continue
            position = sequence.computed_tokens
            scores = [row.start * 4 + 4 for row in first if row.form == "mqa"]
            scored = self.config.forms.form(position, 1) == "mqa"
            assert len(first) == self.config.max_num_batched_tokens or (
                scored and sum(scores) + 4 * (position + 1) > self.config.indexer_workspace_bytes
            )

    def take(self, news: list[Choice]) -> None:
        for choice in news:
            name = (choice.request_id, choice.choice)
            sampling = self.open[name]  # KeyError: something came after the terminal event
            self.generated[name] += len(choice.token_ids)
            assert self.generated[name] <= sampling.max_tokens
            if choice.token_ids == [1] and not sampling.ignore_eos:
                assert choice.finish == "stop" and choice.stop_token == 1
            elif self.generated[name] == sampling.max_tokens and choice.token_ids:
                assert choice.finish == "length"
            if choice.finish:
                del self.open[name]
                self.ended.append(name)

    @invariant()
    def pages_add_up(self) -> None:
        pool, running = self.scheduler.pool, self.scheduler.running
        total = self.config.total_pages
        assert pool.live_pages + sum(pool.idle_pages.values()) + pool.free_pages == total
        held = Counter(page for sequence in running for page in sequence.pages)
        assert [pool.references(page) for page in range(total)] == [
            held[page] for page in range(total)
        ]
        assert pool.live_pages == len(held)
        assert not any(waiting.sequence.pages for waiting in self.scheduler.waiting)
        assert len(running) <= self.config.max_num_seqs
        slots = [sequence.slot for sequence in running]
        assert len(set(slots)) == len(slots) and all(slot >= 0 for slot in slots)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        steps = 0
        while self.scheduler.has_work:
            plan = self.step()
            assert plan.rows or plan.forget, "work, but nothing in the plan"
            steps += 1
            assert steps < 3000, "some request never finishes"
        assert not self.open, "a choice without a terminal event"
        assert self.scheduler.pool.live_pages == 0
        assert not self.runner.slots
        self.check_replay()

    def check_replay(self) -> None:
        """The same submissions and results lead a fresh scheduler to the same decisions."""
        again = Scheduler(self.config)
        for act, answer in self.log:
            assert act(again) == answer


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
