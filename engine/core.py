"""The loop: messages in, one step, messages out.

while not shut down:
    take every message that has arrived; wait for one if there is nothing to do
    plan, execute, commit
    send what happened
"""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from engine.intake import ReadySubmit
from engine.messages import (
    Abort,
    Accepted,
    FromEngine,
    Output,
    Outputs,
    Profile,
    Refused,
    Shutdown,
    Snapshot,
    Stop,
    Submit,
    ToEngine,
    TurnEnded,
)
from engine.profiling import StepProfiler
from engine.runner import Runner
from engine.step_stats import StepRecorder
from scheduler.admission import Backlog, until_drained_s
from scheduler.drain import DrainRate
from scheduler.outcome import Choice, Refusal
from scheduler.plan import StepPlan, StepResult
from scheduler.retention import flip_point
from scheduler.scheduler import Scheduler

SNAPSHOT_INTERVAL_S = 0.25
RATE_SMOOTHING = 0.2


class Rates:
    """Recent tokens per second of engine time, by phase."""

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self.decode_tokens_per_s = 0.0

    def observe(self, plan: StepPlan, result: StepResult) -> None:
        """Takes one step in; a step's time is shared among its tokens evenly."""
        total = sum(row.count for row in plan.rows)
        decode = sum(1 for row in plan.rows if row.count == 1)
        if not total or result.seconds <= 0:
            return
        per_second = total / result.seconds
        if decode:
            self.decode_tokens_per_s = self._smooth(
                self.decode_tokens_per_s, decode / result.seconds
            )
        if decode < total:
            self.prefill_tokens_per_s = self._smooth(self.prefill_tokens_per_s, per_second)

    @staticmethod
    def _smooth(old: float, new: float) -> float:
        return new if old == 0.0 else old + RATE_SMOOTHING * (new - old)


class EngineCore:
    """Ties scheduler and runner together; knows nothing of sockets.

    `inbox` holds decoded messages, None meaning that the API side has gone; `send` must not block.
    `engine.intake` fills it: a Submit that comes another way is hashed here, and its grammar, if it
    has one, is refused.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        inbox: SimpleQueue[ToEngine | None],
        send: Callable[[FromEngine], None],
    ) -> None:
        self.scheduler, self.runner = scheduler, runner
        self.inbox, self.send = inbox, send
        self.rates = Rates()
        self.drain = DrainRate()
        self.step = 0
        self.submits = 0
        self.steps = StepRecorder()
        self.profiler = StepProfiler()
        self.kept_reasoning_tokens = self.dropped_reasoning_tokens = 0
        self._open = True
        self._next_snapshot_s = 0.0

    def run(self) -> None:
        """Runs until Shutdown or until the API side is gone."""
        while self._open:
            self._take_messages()
            if self._open and self.scheduler.has_work:
                self._step()
            self._report()

    def _take_messages(self) -> None:
        wait = not self.scheduler.has_work
        while self._open:
            try:
                message = self.inbox.get(block=wait, timeout=SNAPSHOT_INTERVAL_S)
            except Empty:
                return
            wait = False
            self._handle(message)

    def _handle(self, message: ToEngine | None) -> None:
        match message:
            case Submit():
                self._submit(message)
            case Stop(id=request_id, choice=choice, at_token=at_token):
                self._end(self.scheduler.stop(request_id, choice, at_token))
            case Abort(id=request_id):
                self._end(self.scheduler.abort(request_id))
            case TurnEnded():
                flip = flip_point(message.spans) if _loses_reasoning(message) else None
                self._count_reasoning(message)
                self.scheduler.turn_ended(
                    message.id,
                    message.choice,
                    message.why,
                    flip,
                    next_prefix=message.next_prefix,
                    now_s=time.monotonic(),
                )
            case Profile():
                if (refused := self.profiler.start(message)) is not None:
                    self.send(refused)
            case Shutdown() | None:
                self._open = False

    def _count_reasoning(self, message: TurnEnded) -> None:
        tokens = sum(s.end - s.start for s in message.spans if s.kind == "reasoning")
        if message.why == "tool_calls":
            self.kept_reasoning_tokens += tokens
        elif message.why == "answer":
            self.dropped_reasoning_tokens += tokens

    def _submit(self, message: Submit) -> None:
        self.submits += 1
        ready = message if isinstance(message, ReadySubmit) else None
        if message.grammar is not None and (ready is None or ready.compiled is None):
            reason = (ready and ready.grammar_error) or "it was not compiled"
            self.send(
                Refused(
                    message.id,
                    400,
                    "invalid_grammar",
                    f"The answer cannot be constrained as asked: {reason}.",
                    message.grammar.param,
                )
            )
            return
        answer = self.scheduler.submit(
            message.id,
            message.token_ids,
            message.sampling,
            n=message.n,
            priority=message.priority,
            tenant=message.tenant,
            cache_salt=message.cache_salt,
            keys=ready.keys if ready is not None else None,
        )
        if isinstance(answer, Refusal):
            self.send(
                Refused(
                    message.id,
                    answer.status,
                    answer.code,
                    answer.message,
                    answer.param,
                    self._retry_after_s(message.n) if answer.status == 429 else None,
                )
            )
        else:
            if ready is not None and ready.compiled is not None:
                self.runner.grammars.add(message.id, ready.compiled, message.n)
            self.steps.submitted(message.id, message.n, time.monotonic())
            self.send(Accepted(message.id, answer))

    def _retry_after_s(self, n: int) -> float:
        """When `n` places of a full queue will be free."""
        waiting, backlog_tokens = len(self.scheduler.waiting), self.scheduler.backlog_tokens
        load = Backlog(drain_tokens_per_s=self.drain.tokens_per_s)
        return until_drained_s(load, backlog_tokens * min(1.0, n / max(1, waiting)))

    def _step(self) -> None:
        begin_s, backlog_tokens = time.monotonic(), self.scheduler.backlog_tokens
        plan = self.scheduler.plan(begin_s)
        sums, predictor = self.scheduler.step_sums, self.scheduler.predictor
        predicted_s = predictor.predict(sums) if predictor is not None else 0.0
        result = self.runner.execute(plan)
        self.step = plan.step
        self.rates.observe(plan, result)
        news = self.scheduler.commit(result)
        end_s = time.monotonic()
        self.drain.observe(backlog_tokens, self.scheduler.backlog_tokens, end_s - begin_s)
        self._publish(news)
        if plan.rows:
            self.steps.step(
                plan,
                sums,
                news,
                begin_s=begin_s,
                end_s=end_s,
                seconds=result.seconds,
                predicted_s=predicted_s,
                pre_warmed_tokens=self.scheduler.pre_warmer.computed_tokens,
            )
        self.steps.ended(news)
        if (profiled := self.profiler.stepped()) is not None:
            self.send(profiled)

    def _end(self, news: list[Choice]) -> None:
        """Choices ended between two steps."""
        self.steps.ended(news)
        self._publish(news)

    def _publish(self, news: list[Choice]) -> None:
        if not news:
            return
        for choice in news:
            if choice.finish is not None:
                self.runner.grammars.choice_ended(choice.request_id)
        self.send(Outputs(self.step, [_output(choice) for choice in news]))

    def _report(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_snapshot_s:
            return
        self._next_snapshot_s = now_s + SNAPSHOT_INTERVAL_S
        if (steps := self.steps.take()) is not None:
            self.send(steps)
        self.send(self.snapshot())

    def snapshot(self) -> Snapshot:
        """Returns the state of queue, pages and rates."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        return Snapshot(
            step=self.step,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            backlog_tokens=scheduler.backlog_tokens,
            live_pages=pool.live_pages,
            idle_pages=pool.idle_pages,
            free_pages=pool.free_pages,
            total_pages=pool.total_pages,
            prefill_tokens_per_s=self.rates.prefill_tokens_per_s,
            decode_tokens_per_s=self.rates.decode_tokens_per_s,
            preemptions=scheduler.preemptions,
            drain_tokens_per_s=self.drain.tokens_per_s,
            tenant_backlog_tokens=dict(scheduler.backlog.by_tenant),
            evictions={str(kind): count for kind, count in pool.evictions.items()},
            pre_warmed_tokens=scheduler.pre_warmer.computed_tokens,
            pre_warms=len(scheduler.pre_warmer),
            pre_warm_hit_tokens=scheduler.pre_warmer.hit_tokens,
            submits=self.submits,
            kept_reasoning_tokens=self.kept_reasoning_tokens,
            dropped_reasoning_tokens=self.dropped_reasoning_tokens,
        )


def _loses_reasoning(message: TurnEnded) -> bool:
    return any(span.kind == "reasoning" for span in message.spans)


def _output(choice: Choice) -> Output:
    extras: dict[str, str | int | float] = {}
    if choice.stop_token is not None:
        extras["stop_token"] = choice.stop_token
    if choice.cached_tokens is not None:
        extras["cached_tokens"] = choice.cached_tokens
    return Output(
        choice.request_id,
        choice.choice,
        choice.token_ids,
        choice.logprobs,
        choice.finish,
        extras,
        choice.prompt_logprobs,
    )
