"""The scheduler under random traffic, on pools so small that it must preempt and evict."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.config import SchedulerConfig
from scheduler.forms import FormPolicy
from scheduler.outcome import Choice, Refusal
from scheduler.plan import StepPlan, StepResult
from scheduler.planning import PATIENCE_STEPS
from scheduler.request import Sampling
from scheduler.scheduler import Scheduler
from tests.scheduler.fake_predictor import LinearPredictor
from tests.scheduler.fake_runner import FakeRunner
from tests.scheduler.pool_checks import check_pool, references

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
        prefix_caching=st.sampled_from([True, True, True, False]),
        queue=st.integers(1, 8),
        target_s=st.sampled_from([None, 0.5, 3.5, 30.0]),
        floor=st.integers(1, 4),
        awaited_share=st.sampled_from([0.0, 0.4, 1.0]),
        doubling=st.sampled_from([0, 4]),
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
        target_s: float | None,
        floor: int,
        awaited_share: float,
        doubling: int,
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
            inter_token_target_s=target_s,
            prefill_floor_tokens=floor,
            awaited_s=5.0,
            awaited_share=awaited_share,
            cost_doubling_tokens=doubling,
            max_pre_warms=2,
        )
        self.scheduler = self.fresh()
        self.runner = FakeRunner(self.config, self.scheduler.pool)
        self.open: dict[tuple[str, int], Sampling] = {}
        """Choices without a terminal event."""
        self.generated: Counter[tuple[str, int]] = Counter()
        self.ended: list[tuple[str, int]] = []
        self.log: list[tuple[Callable[[Scheduler], Any], Any]] = []
        self.submitted = 0
        self.prompts: dict[str, list[int]] = {}
        self.hows: dict[str, dict[str, Any]] = {}
        """Request id -> tenant and salt."""
        self.said: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        """Generated tokens."""
        self.now_s = 0.0
        self.steps_without_row: Counter[tuple[str, int]] = Counter()
        self.steps_without_prefill = 0

    def fresh(self) -> Scheduler:
        """With a predictor of one second per token, if the target asks for one."""
        return Scheduler(self.config, LinearPredictor())

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
        scored=st.sampled_from([False, False, True]),
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
        scored: bool,
    ) -> None:
        how = {"tenant": owner[0], "cache_salt": owner[1]}
        sampling = Sampling(
            max_tokens=max_tokens, ignore_eos=ignore_eos, prompt_logprobs=0 if scored else None
        )
        self.ask(BASE[:shared] + tail, sampling, how, n=n, priority=priority)

    def ask(
        self,
        prompt: list[int],
        sampling: Sampling,
        how: dict[str, Any],
        *,
        n: int = 1,
        priority: int = 0,
    ) -> None:
        request_id = f"r{self.submitted}"
        self.submitted += 1
        room = self.config.max_queued_requests - len(self.scheduler.waiting)
        self.runner.owners[request_id] = repr(how)
        self.prompts[request_id], self.hows[request_id] = prompt, how
        answer = self.do(
            lambda scheduler: scheduler.submit(
                request_id, list(prompt), sampling, n=n, priority=priority, **how
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
        next_prefix=st.none()
        | st.tuples(st.integers(0, len(BASE)), st.lists(st.integers(2, 4), max_size=9)),
    )
    def turn_ended(
        self,
        data: st.DataObject,
        why: Any,
        flip: int | None,
        next_prefix: tuple[int, list[int]] | None,
    ) -> None:
        request_id, choice = data.draw(st.sampled_from(self.ended))
        tokens = None if next_prefix is None else BASE[: next_prefix[0]] + next_prefix[1]
        now_s = self.now_s
        self.do(
            lambda scheduler: scheduler.turn_ended(
                request_id, choice, why, flip, next_prefix=tokens, now_s=now_s
            )
        )
        limit = int(self.config.awaited_share * self.config.total_pages)
        if why == "tool_calls":
            assert self.scheduler.pool.idle_of("awaited") <= limit

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), result=st.lists(st.integers(2, 6), min_size=1, max_size=6))
    def a_tool_result_comes(self, data: st.DataObject, result: list[int]) -> None:
        """The whole turn is the prefix of the next prompt, whether its end was told or not."""
        name = data.draw(st.sampled_from(self.ended))
        told, now_s = data.draw(st.booleans()), self.now_s
        if told:
            self.do(lambda s: s.turn_ended(*name, "tool_calls", None, now_s=now_s))
        prompt = self.prompts[name[0]] + self.said[name] + result
        self.ask(prompt, Sampling(max_tokens=4), self.hows[name[0]])

    @precondition(lambda self: self.ended)
    @rule(
        data=st.data(),
        answer=st.lists(st.integers(2, 6), max_size=9),
        message=st.lists(st.integers(2, 6), min_size=1, max_size=3),
        steps=st.integers(0, 3),
    )
    def a_user_message_comes(
        self, data: st.DataObject, answer: list[int], message: list[int], steps: int
    ) -> None:
        """The turn is rendered anew from its flip point on, and may be warm by then."""
        name = data.draw(st.sampled_from(self.ended))
        prompt, now_s = self.prompts[name[0]], self.now_s
        flip = data.draw(st.integers(1, len(prompt)))
        form = prompt[:flip] + answer
        self.do(lambda s: s.turn_ended(*name, "answer", flip, next_prefix=form, now_s=now_s))
        for _ in range(steps):
            if self.scheduler.has_work:
                self.step()
        self.ask(form + message, Sampling(max_tokens=4), self.hows[name[0]])

    @rule(seconds=st.floats(0.0, 6.0))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    def step(self) -> StepPlan:
        scheduler = self.scheduler
        decoding = dict(scheduler._running.decoding)
        assert all(s.computed_tokens + 1 == len(s.token_ids) for s in decoding.values())
        prefilling = [s for s in scheduler.running if s.slot not in decoding]
        computed, now_s = self.runner.computed_tokens, self.now_s
        plan: StepPlan = self.do(lambda scheduler: scheduler.plan(now_s))
        self.check_decode_comes_first(plan, decoding)
        self.check_nobody_starves(plan, decoding, bool(prefilling))
        self.check_pre_warming_yields(plan)
        self.check_time(plan, decoding)
        result: StepResult = self.runner.execute(plan)
        assert self.runner.computed_tokens - computed == sum(row.count for row in plan.rows)
        self.take(self.do(lambda scheduler: scheduler.commit(result)))
        return plan

    def check_decode_comes_first(self, plan: StepPlan, decoding: dict[int, Any]) -> None:
        """A decoding sequence that keeps its slot is left out only if the step has no room."""
        planned = [row.slot for row in plan.rows]
        first = [row for row in plan.rows if row.slot in decoding]
        assert list(plan.rows[: len(first)]) == first, "decode rows stand before prefill rows"
        tokens = sum(row.count for row in plan.rows)
        scores = sum(
            4 * row.count * (row.start + row.count)
            for row in plan.rows
            if row.form in ("mqa", "masked_mha")
        )
        for slot, sequence in decoding.items():
            if slot in planned or slot in plan.forget:
                continue
            context = sequence.computed_tokens + 1
            scored = self.config.forms.form(context - 1, 1) == "mqa"
            assert tokens == self.config.max_num_batched_tokens or (
                scored and scores + 4 * context > self.config.indexer_workspace_bytes
            )

    def check_nobody_starves(
        self, plan: StepPlan, decoding: dict[int, Any], prefilling: bool
    ) -> None:
        """Every answer goes on within a few steps, and so does the prompt that is first in line."""
        rows = {row.slot: row for row in plan.rows}
        waits = Counter[tuple[str, int]]()
        for slot, sequence in decoding.items():
            if slot not in rows and slot not in plan.forget:
                name = (sequence.request_id, sequence.choice)
                waits[name] = self.steps_without_row[name] + 1
        self.steps_without_row = waits
        assert max(waits.values(), default=0) <= 2 * self.config.max_num_seqs
        served = any(slot not in decoding for slot in rows) or bool(plan.forget)
        self.steps_without_prefill = (
            self.steps_without_prefill + 1 if prefilling and not served else 0
        )
        assert self.steps_without_prefill <= PATIENCE_STEPS

    def check_pre_warming_yields(self, plan: StepPlan) -> None:
        """Nobody waits, and nothing real is prefilled, in a step that pre-warms."""
        active = self.scheduler.pre_warmer.active
        if active is None:
            return
        running = {s.slot for s in self.scheduler.running}
        if any(row.slot == active.slot for row in plan.rows):
            assert not len(self.scheduler.waiting)
            assert all(row.count == 1 for row in plan.rows if row.slot in running)

    def check_time(self, plan: StepPlan, decoding: dict[int, Any]) -> None:
        """Prefill beside answers keeps the step inside the target, but for its floor."""
        target_s = self.config.inter_token_target_s
        prefills = [row.count for row in plan.rows if row.slot not in decoding]
        if target_s is None or len(prefills) == len(plan.rows) or not prefills:
            return
        tokens = sum(row.count for row in plan.rows)
        assert tokens <= target_s or sum(prefills) <= self.config.prefill_floor_tokens

    def take(self, news: list[Choice]) -> None:
        for choice in news:
            name = (choice.request_id, choice.choice)
            sampling = self.open[name]  # KeyError: something came after the terminal event
            self.generated[name] += len(choice.token_ids)
            self.said[name] += choice.token_ids
            if choice.cached_tokens is not None:
                assert choice.cached_tokens % PAGE_TOKENS == 0
                assert choice.cached_tokens < len(self.prompts[name[0]])
            if choice.cached_tokens is None or sampling.prompt_logprobs is None or name[1]:
                assert choice.prompt_logprobs is None
            else:
                places = range(1, len(self.prompts[name[0]]))
                assert choice.prompt_logprobs == [self.runner.scored(place) for place in places]
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
        scheduler, pool = self.scheduler, self.scheduler.pool
        check_pool(pool)
        running = scheduler.running
        if scheduler.pre_warmer.active is not None:
            running.append(scheduler.pre_warmer.active)
        held = Counter(page for sequence in running for page in sequence.pages)
        assert [references(pool, page) for page in range(pool.total_pages)] == [
            held[page] for page in range(pool.total_pages)
        ]
        assert not any(sequence.pages for sequence in scheduler.waiting)
        assert len(running) <= self.config.max_num_seqs
        slots = [sequence.slot for sequence in running]
        assert len(set(slots)) == len(slots) and all(slot >= 0 for slot in slots)

    @invariant()
    def nobody_found_what_was_not_warmed(self) -> None:
        warmer = self.scheduler.pre_warmer
        assert 0 <= warmer.hit_tokens <= warmer.computed_tokens
        assert warmer.hit_tokens % PAGE_TOKENS == 0
        assert len(warmer) <= self.config.max_pre_warms + 1

    @invariant()
    def everybody_is_somewhere(self) -> None:
        scheduler = self.scheduler
        waiting = list(scheduler.waiting)
        names = [(s.request_id, s.choice) for s in (*waiting, *scheduler.running)]
        assert sorted(names) == sorted(self.open)
        assert len(waiting) == len(scheduler.waiting)
        backlog = [s.backlog_tokens for s in (*waiting, *scheduler.running)]
        assert scheduler.backlog_tokens == sum(backlog)
        assert sum(scheduler.backlog.by_tenant.values()) == sum(backlog)
        for sequence in scheduler.running:
            left = sequence.prompt_tokens - sequence.computed_tokens
            assert sequence.backlog_tokens == max(0, left)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        steps = 0
        while self.scheduler.has_work:
            forms = len(self.scheduler.pre_warmer)
            plan = self.step()
            forgotten = len(self.scheduler.pre_warmer) < forms
            assert plan.rows or plan.forget or forgotten, "work, but nothing in the plan"
            steps += 1
            assert steps < 3000, "some request never finishes"
        assert not self.open, "a choice without a terminal event"
        assert self.scheduler.pool.live_pages == 0
        assert not self.runner.slots
        self.check_replay()

    def check_replay(self) -> None:
        """The same submissions and results lead a fresh scheduler to the same decisions."""
        again = self.fresh()
        for act, answer in self.log:
            assert act(again) == answer


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
