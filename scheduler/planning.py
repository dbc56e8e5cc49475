"""One step: which rows run, in what order, and whose pages make room for them.

There are no phases. Every running sequence asks for its known tokens minus its computed ones: one
when it decodes, many while its prompt is prefilled. Decode rows come first, then prefill in order
of priority and arrival, inside the step's budget (`scheduler.budget`). Waiting sequences join in
the order of `scheduler.queue`, after the prompts of their own priority, while there is a slot,
budget, and pages for all their known tokens; what is left is for pre-warming. While anything runs,
a new turn leaves awaited pages and a reserve alone. When a running sequence finds no page, the one
of the lowest priority and last arrival is preempted: its pages go back, it waits before its
tenant's new turns, and finds most of them again by their identity. A waiting sequence never
preempts a running one.
"""

from __future__ import annotations

import msgspec

from scheduler.backlog import Backlog
from scheduler.budget import SCORE_BYTES, Budget, Predictor, StepSums
from scheduler.config import SchedulerConfig
from scheduler.leaders import PrefixLeaders
from scheduler.pages import Prefix
from scheduler.plan import Form, NewSlot, Prepare, Row, Sample, StepPlan
from scheduler.pre_warm import PreWarmer
from scheduler.queue import WaitingQueue
from scheduler.request import Sequence
from scheduler.running import RunningSet

PATIENCE_STEPS = 8
"""Steps without room for any prefill after which one goes before the decode rows."""


GROWTH_RESERVE = 0.05
"""Share of the pages that new turns leave to those that run."""


NO_PLAN = StepPlan(-1, ())


class PlannedStep(msgspec.Struct):
    """A step in the making, and then what its commit has to know."""

    budget: Budget
    sequences: list[Sequence] = []
    """Of the rows, in their order."""
    rows: list[Row] = []
    decode_rows: int = 0
    """They come first."""
    prefills: list[tuple[Sequence, Row]] = []
    new_slots: list[NewSlot] = []
    plan: StepPlan = NO_PLAN

    @property
    def sums(self) -> StepSums:
        return self.budget.sums

    def add(self, sequence: Sequence, count: int, *, samples: bool = True) -> None:
        """Plans a prefill row."""
        start, budget = sequence.computed_tokens, self.budget
        budget.spend(start, count)
        ends = samples and start + count == sequence.known_tokens
        form = budget.forms.form(start, count)
        sample: Sample = "last" if ends else "none"
        if sequence.prompt_logprobs is not None and sequence.wants_prompt_logprobs:
            sample = "every"
        row = Row(sequence.slot, start, count, sample, form)
        self.prefills.append((sequence, row))


class StepPlanner:
    """Fills steps; moves sequences from the queue into the running set, and back."""

    def __init__(
        self,
        config: SchedulerConfig,
        predictor: Predictor | None,
        running: RunningSet,
        waiting: WaitingQueue,
        leaders: PrefixLeaders,
        backlog: Backlog,
        pre_warmer: PreWarmer,
    ) -> None:
        self.config, self.predictor = config, predictor
        self.running, self.waiting, self.leaders = running, waiting, leaders
        self.backlog, self.pre_warmer = backlog, pre_warmer
        self.preemptions = 0
        self._starved_steps = 0
        self._pre_warms = -1
        """Arrivals of pre-warmed sequences count downwards, apart from all others."""

    def plan(self, number: int) -> PlannedStep:
        """Returns the next step."""
        running = self.running
        if self.pre_warmer.active is not None and (self.waiting.count or running.prefilling):
            self._drop_pre_warm()
        preemptions = self.preemptions
        new_pages = self._grow() if running.decoding else ()
        may_join = self.preemptions == preemptions
        step = PlannedStep(Budget(self.config, self.predictor))
        starving = self._starved_steps >= PATIENCE_STEPS
        if starving:
            self._plan_prefills(step, may_join, only_floor=True)
        if running.decoding:
            self._plan_decodes(step)
        if not (starving and step.prefills):
            self._plan_prefills(step, may_join)
        wanted = running.prefilling or (self.waiting.count and running.free_slots)
        self._starved_steps = 0 if step.prefills or not wanted else self._starved_steps + 1
        self._plan_pre_warm(step)
        for sequence, row in step.prefills:
            step.sequences.append(sequence)
            step.rows.append(row)
        prepare = Prepare(tuple(step.new_slots), new_pages)
        step.plan = StepPlan(number, tuple(step.rows), prepare, tuple(running.forget))
        running.forget = []
        return step

    def _grow(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Gives decode rows the pages they lack, preempting where there are none."""
        running = self.running
        lacking = [s for s in running.decoding.values() if s.computed_tokens >= s.capacity_tokens]
        grown: list[Sequence] = []
        for sequence in lacking:
            while sequence.slot >= 0:
                if running.grow(sequence):
                    grown.append(sequence)
                    break
                if not self._drop_pre_warm():
                    self._preempt(running.last())
        return tuple((s.slot, (s.pages[-1],)) for s in grown if s.slot >= 0)

    def _plan_decodes(self, step: PlannedStep) -> None:
        """One row for every sequence that decodes, as far as tokens and scores last.

        Those that are left out come first in the next step.
        """
        rows, sequences, budget = step.rows, step.sequences, step.budget
        forms = self.config.forms
        unscored, selected = forms.unscored_tokens, forms.selected_tokens
        tokens, room = budget.tokens, budget.score_bytes // SCORE_BYTES
        first_fits = not budget.rows
        scores = contexts = selections = 0
        left_out: list[Sequence] = []
        for sequence in self.running.decoding.values():
            start = sequence.computed_tokens
            context = start + 1
            if len(rows) >= tokens:
                left_out.append(sequence)
                continue
            if context <= unscored:
                form: Form = "dense_mqa"
            elif scores + context <= room or (first_fits and not rows):
                form = "mqa"
                scores += context
            else:
                left_out.append(sequence)
                continue
            contexts += context
            selections += context if context < selected else selected
            rows.append(Row(sequence.slot, start, 1, "last", form))
            sequences.append(sequence)
        step.decode_rows = len(rows)
        budget.spend_decodes(len(rows), scores * SCORE_BYTES, contexts, selections)
        if left_out:
            self.running.decoding = {s.slot: s for s in left_out} | self.running.decoding

    def _plan_prefills(
        self, step: PlannedStep, may_join: bool, *, only_floor: bool = False
    ) -> None:
        """Rows for running sequences with many tokens to compute, and for waiting ones, which come
        after those of their priority.

        With `only_floor` at most one row, and no more than the floor.
        """
        longest = self.config.prefill_floor_tokens if only_floor else self.config.max_model_len
        prefilling = self.running.prefilling
        for sequence in sorted(prefilling.values(), key=lambda s: s.rank) if prefilling else ():
            while may_join and self._is_urgent(sequence) and self._join(step, longest):
                if only_floor:
                    return
            start = sequence.computed_tokens
            count = step.budget.fit(start, min(longest, sequence.known_tokens - start))
            if count:
                step.add(sequence, count)
                if only_floor:
                    return
        while may_join and self.waiting.count and self._join(step, longest) and not only_floor:
            pass

    def _is_urgent(self, sequence: Sequence) -> bool:
        """Whether somebody of higher priority than a running sequence waits."""
        head = self.waiting.head()
        return head is not None and head.priority < sequence.priority

    def _join(self, step: PlannedStep, longest: int) -> bool:
        """Starts who is next in the queue; returns whether there was one who fitted."""
        running = self.running
        if not running.free_slots or step.budget.tokens <= 0:
            return False
        joining = self._joining()
        if joining is None:
            return False
        sequence, found, passed = joining
        known, start = sequence.known_tokens, found.end * self.config.page_tokens
        count = step.budget.fit(start, min(longest, known - start))
        if not count:
            return False
        self.waiting.start(sequence, passed)
        step.new_slots.append(running.start(sequence, found))
        if sequence.cached_tokens is None:
            sequence.cached_tokens = start
            running.service.charge(sequence.tenant, prompt_tokens=known - start)
            self.pre_warmer.found(sequence.keys, found.end)
        self.backlog.set(sequence, sequence.prompt_tokens - start)
        step.add(sequence, count)
        return True

    def _joining(self) -> tuple[Sequence, Prefix, Sequence | None] | None:
        """Returns who starts next, the cached prefix to start with, and whom it passes; None when
        nobody fits.

        That is the head of the queue, or one who may pass it while there is no room for it. Who
        waits for somebody else to compute a page is parked.
        """
        size, pool = self.config.page_tokens, self.running.pool
        sequence, passed = self.waiting.head(), None
        while sequence is not None:
            known = sequence.known_tokens
            limit = sequence.reusable_tokens // size
            found = pool.match(sequence.keys, limit)
            if self.leaders.park(sequence, found.end, limit):
                sequence, passed = self.waiting.head(), None
                continue
            missing = -(-known // size) - found.end
            if missing + pool.count_idle(found) <= self._room(sequence):
                return sequence, found, passed
            passed = sequence
            sequence = self.waiting.passing(passed)
        return None

    def _room(self, sequence: Sequence) -> int:
        """Returns the pages that a sequence may start with.

        A new turn that took awaited pages, or the last ones that running answers grow into, would
        only have others compute again what was there. Once nothing runs it may take all there is.
        """
        pool = self.running.pool
        room = pool.available_pages
        if not sequence.continues and self.running:
            room -= pool.idle_of("awaited") + int(GROWTH_RESERVE * pool.total_pages)
        return room

    def _preempt(self, sequence: Sequence) -> None:
        """Takes a running sequence's pages and slot; it waits among those that continue."""
        self.running.release(sequence)
        sequence.continues = True
        sequence.computed_tokens = 0
        self.backlog.set(sequence, sequence.prompt_tokens)
        self.waiting.push(sequence)
        self.preemptions += 1

    def _plan_pre_warm(self, step: PlannedStep) -> None:
        """Computes a form that will be needed, in a step that has nothing else to prefill.

        Beside answers that stream it takes only time left inside their target, so without a
        predictor and a target it waits until nothing runs.
        """
        running, warmer = self.running, self.pre_warmer
        timed = self.predictor is not None and self.config.inter_token_target_s is not None
        if running.prefilling or self.waiting.count or (running.decoding and not timed):
            return
        if warmer.active is None:
            if not running.free_slots or (started := warmer.start(self._pre_warms)) is None:
                return
            self._pre_warms -= 1
            step.new_slots.append(running.enter(started))
        sequence = warmer.active
        assert sequence is not None
        start = sequence.computed_tokens
        count = step.budget.fit(start, sequence.known_tokens - start, spare_time_only=True)
        if count:
            step.add(sequence, count, samples=False)

    def _drop_pre_warm(self) -> bool:
        """Gives the pre-warmed sequence's slot and pages back; returns whether there was one."""
        sequence = self.pre_warmer.active
        if sequence is None:
            return False
        self.pre_warmer.put_back()
        self.running.release(sequence)
        return True
