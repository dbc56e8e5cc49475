"""What becomes of requests: their first token, their end, their size; and who was refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from api.errors import ApiError
from api.metrics import names
from api.metrics.cost import Costs, RequestCost
from api.metrics.ended import Ended
from api.metrics.tracing import Tracing, traceparent
from api.metrics.values import Values


class Measured:
    """One accepted request on its way; told by its turn."""

    def __init__(self, counts: RequestCounts, begin_s: float) -> None:
        """begin_s: when it arrived, by the event loop's clock."""
        self.begin_s = begin_s
        self.failed = False
        self._counts = counts
        self._first_token_s: float | None = None
        self._parent = traceparent.get()

    def token(self) -> None:
        """Something was sampled for it."""
        if self._first_token_s is None:
            self._first_token_s = asyncio.get_running_loop().time()
            self._counts.first_token.observe(self._first_token_s - self.begin_s)

    def cost(self, prompts: Sequence[tuple[int, int, list[int]]]) -> RequestCost | UnsetType:
        """Returns what it cost, if requests are told. prompts: as Costs.request takes them."""
        costs = self._counts.costs
        return UNSET if costs is None else costs.request(prompts)

    def end(self, ended: Ended) -> None:
        """It is over."""
        counts = self._counts
        end_s = asyncio.get_running_loop().time()
        counts.seconds.observe(end_s - self.begin_s)
        counts.restored.add(ended.restored_tokens)
        for tokens in ended.prompt_tokens:
            counts.prompt.observe(tokens)
        for reason, tokens in ended.choices:
            counts.output.observe(tokens)
            counts.finished[reason or ("error" if self.failed else "abort")].add()
        # Choices of a request run side by side: the longest one sets its pace.
        longest = max((tokens for _, tokens in ended.choices), default=0)
        if self._first_token_s is not None and longest > 1:
            counts.per_token.observe((end_s - self._first_token_s) / (longest - 1))
        if counts.tracing is not None:
            first_s = self._first_token_s
            counts.tracing.ended(
                ended,
                seconds=end_s - self.begin_s,
                first_token_s=None if first_s is None else first_s - self.begin_s,
                parent=self._parent,
                failed=self.failed,
            )


class RequestCounts:
    """Every request of this process."""

    def __init__(self, values: Values) -> None:
        self.first_token = values.histogram(names.FIRST_TOKEN)
        self.per_token = values.histogram(names.PER_TOKEN)
        self.seconds = values.histogram(names.REQUEST_SECONDS)
        self.prompt = values.histogram(names.PROMPT_SIZE)
        self.output = values.histogram(names.OUTPUT_SIZE)
        self.costs: Costs | None = None
        """Where requests are told what they cost."""
        self.tracing: Tracing | None = None
        """Where each request becomes a span."""
        self.restored = values.number(names.RESTORED_REASONING)
        self.finished = {
            reason: values.number(names.FINISHED, reason) for reason in names.FINISH_REASONS
        }
        self._refused = {
            reason: values.number(names.REFUSALS, reason) for reason in names.REFUSAL_REASONS
        }

    def begin(self, begin_s: float) -> Measured:
        """Returns what an accepted request tells its story to."""
        return Measured(self, begin_s)

    def refused(self, error: ApiError) -> None:
        """A request was answered with an error before anything was generated."""
        reason = error.code if error.code in self._refused else "other"
        if reason == "other" and error.status in (400, 422):
            reason = "invalid_request"
        self._refused[reason].add()
