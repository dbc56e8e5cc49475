"""What was seen of each request. Nothing is summed up before the end: percentiles are exact."""

from __future__ import annotations

from array import array
from typing import Literal

import msgspec

Outcome = Literal["answered", "refused", "failed", "unfinished"]
"""The stream ended well; an error status; no answer or a broken one; still running at the end."""

NEVER = -1.0


class Sample(msgspec.Struct, gc=False):
    """One request. Times are seconds since the run began; NEVER for what did not happen."""

    workload: str
    due_s: float
    """When it should have been sent: later than that is the load generator's own lag."""
    sent_s: float
    outcome: Outcome = "unfinished"
    status: int = 0
    """Of HTTP; 0: there was none."""
    error: str = ""
    """Code of a refusal or a failure."""
    first_s: float = NEVER
    """The first chunk that said something, reasoning included."""
    last_s: float = NEVER
    """The last such chunk."""
    end_s: float = NEVER
    """The end of the stream."""
    chunks_s: array[float] = msgspec.field(default_factory=lambda: array("d"))
    """When each chunk that said something was read from the socket."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    counted: bool = False
    """Whether the server counted the tokens; else each chunk is taken for one."""
    asked_call: bool = False
    """Whether the request was to be answered by a tool call."""
    called: bool = False
    retry_after_s: float = 0.0
    """What a refusal said."""

    @property
    def first_token_s(self) -> float:
        """Time to the first token."""
        return self.first_s - self.sent_s

    @property
    def end_to_end_s(self) -> float:
        """Time to the end of the answer."""
        return self.end_s - self.sent_s

    @property
    def time_per_output_token_s(self) -> float | None:
        """(end - first token) / (tokens - 1) by the server's count; None below two tokens."""
        tokens = self.output_tokens - 1
        return (self.last_s - self.first_s) / tokens if tokens > 0 else None

    @property
    def lag_s(self) -> float:
        """How late the load generator sent it."""
        return self.sent_s - self.due_s
