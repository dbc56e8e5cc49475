"""What each step was, for metrics: taken down here, added up on the API's side.

The engine sends one small record per step, four times a second; histograms and prices are no
business of the process that has tokens to compute.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.messages import Steps, StepStats
from scheduler.budget import StepSums
from scheduler.outcome import Choice
from scheduler.plan import StepPlan

Name = tuple[str, int]
"""Request id and choice."""


class StepRecorder:
    """Takes steps down until they are sent.

    Times are those of one monotonic clock, in seconds. The work of a step grows with its choices,
    by one look-up each: when the last token of a choice came is what its next gap is measured from.
    """

    def __init__(self) -> None:
        self._steps: list[StepStats] = []
        self._submitted_s: dict[Name, float] = {}
        """Choices that have not started yet, and since when they wait."""
        self._last_token_s: dict[Name, float] = {}
        """Choices that have a token, and when the last one came."""
        self._pre_warmed_tokens = 0

    def submitted(self, request_id: str, choices: int, now_s: float) -> None:
        """Takes down that a request was queued."""
        for choice in range(choices):
            self._submitted_s[request_id, choice] = now_s

    def step(
        self,
        plan: StepPlan,
        sums: StepSums,
        news: Sequence[Choice],
        *,
        begin_s: float,
        end_s: float,
        seconds: float,
        predicted_s: float,
        pre_warmed_tokens: int,
    ) -> None:
        """Takes a step down.

        sums: of its rows. begin_s, end_s: around planning, execution and commit. seconds: of the
        execution alone. predicted_s: what it was to take, 0 if nothing was predicted.
        pre_warmed_tokens: computed for turns to come, since the start.
        """
        gaps, first_tokens = self._gaps(news, end_s)
        waits: list[float] = []
        prompts: list[tuple[int, int]] = []
        if plan.prepare.new_slots:
            starts = {row.slot: row.start for row in plan.rows}
            for new in plan.prepare.new_slots:
                since_s = self._submitted_s.pop((new.request_id, new.choice), None)
                if since_s is not None:  # else it was preempted, or is pre-warmed
                    waits.append(begin_s - since_s)
                    prompts.append((new.prompt_tokens, starts[new.slot]))
        self._steps.append(
            StepStats(
                seconds=seconds,
                predicted_s=predicted_s,
                overhead_s=max(0.0, end_s - begin_s - seconds),
                decode_rows=sums.decode_rows,
                decode_context_tokens=sums.decode_context_tokens,
                decode_selected_tokens=sums.decode_selected_tokens,
                decode_scored_tokens=sums.decode_scored_tokens,
                prefills=[(r.start, r.count, r.form) for r in plan.rows[sums.decode_rows :]]
                if sums.prefill_rows
                else [],
                pre_warmed_tokens=pre_warmed_tokens - self._pre_warmed_tokens,
                first_tokens=first_tokens,
                gaps=gaps,
                waits_s=waits,
                prompts=prompts,
            )
        )
        self._pre_warmed_tokens = pre_warmed_tokens

    def ended(self, news: Sequence[Choice]) -> None:
        """Forgets choices that ended, in a step or between two."""
        for choice in news:
            if choice.finish is not None:
                name = (choice.request_id, choice.choice)
                self._submitted_s.pop(name, None)
                self._last_token_s.pop(name, None)

    def take(self) -> Steps | None:
        """Returns the steps since the last call, None if there were none."""
        if not self._steps:
            return None
        steps, self._steps = self._steps, []
        return Steps(steps)

    def _gaps(self, news: Sequence[Choice], now_s: float) -> tuple[list[tuple[float, int]], int]:
        """Returns (seconds since the token before, tokens) for each distinct gap, and the number
        of first tokens. Nearly all tokens of a step share one gap."""
        tokens_at: dict[float, int] = {}
        last, first_tokens = self._last_token_s, 0
        for choice in news:
            if not choice.token_ids:
                continue
            name = (choice.request_id, choice.choice)
            before_s = last.get(name)
            last[name] = now_s
            if before_s is None:
                first_tokens += 1
            else:
                tokens_at[before_s] = tokens_at.get(before_s, 0) + len(choice.token_ids)
        return [(now_s - before_s, tokens) for before_s, tokens in tokens_at.items()], first_tokens
