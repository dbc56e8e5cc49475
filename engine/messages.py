"""Messages between the API process and the engine process.

One local socket, msgspec's MessagePack, a tag per type. Never pickle.

    Submit -> Accepted | Refused, then Outputs until every choice had its one terminal event
"""

from __future__ import annotations

from typing import Literal

import msgspec

from scheduler.plan import TokenLogprobs
from scheduler.request import FinishReason, Sampling, Span

__all__ = [
    "Abort",
    "Accepted",
    "Failed",
    "FinishReason",
    "FromEngine",
    "Output",
    "Outputs",
    "Ready",
    "Refused",
    "Sampling",
    "Shutdown",
    "Snapshot",
    "Span",
    "Stop",
    "Submit",
    "ToEngine",
    "TokenLogprobs",
    "TurnEnded",
]


class Submit(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """One request: a prompt and `n` choices."""

    id: str
    token_ids: list[int]
    sampling: Sampling
    spans: list[Span] = []
    """What each part of the prompt is, for retention."""
    n: int = 1
    priority: int = 0
    """Lower runs first; equal priorities run in order of arrival."""
    tenant: str = ""
    cache_salt: str = ""
    """Prefixes are shared only among requests with equal tenant and salt."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """The API matched a stop string: end this choice after its `at_token`-th generated token."""

    id: str
    choice: int
    at_token: int


class Abort(msgspec.Struct, frozen=True, tag=True):
    """The client went away: end every choice, free its pages within one step."""

    id: str


class TurnEnded(msgspec.Struct, frozen=True, tag=True):
    """Why a choice's turn ended, known only after parsing; feeds retention."""

    id: str
    choice: int
    why: Literal["tool_calls", "answer", "length", "aborted"]
    spans: list[Span] = []
    """The whole sequence, prompt and answer, without gaps."""
    next_prefix: list[int] | None = None
    """Token ids the next user turn will start with, when they are known."""


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Finish nothing more, exit."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine has loaded its model; sent once, before anything else."""

    model_type: str
    vocab_size: int
    max_model_len: int
    """Longest sequence, prompt and output, in tokens."""
    page_tokens: int
    total_pages: int
    memory: dict[str, int]
    """The memory equation: what -> bytes."""
    device: str
    dtype: str
    max_queued_requests: int = 1024
    """Sequences that may wait; with the next, what admission holds requests to."""
    max_queued_tokens: int = 2**20
    """Prompt tokens that may wait to be computed."""
    pre_warms: bool = True
    """Whether TurnEnded.next_prefix is of any use."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot start, or cannot go on; the last message before it exits."""

    message: str


class Accepted(msgspec.Struct, frozen=True, tag=True):
    id: str
    cached_tokens: int
    """Prompt tokens in the cache now; what was really reused comes with the first Output."""


class Refused(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The request will produce nothing; this is its only event."""

    id: str
    status: int
    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None


class Output(msgspec.Struct, frozen=True, array_like=True):
    """News of one choice. Exactly one Output per choice has `finish` set: its terminal event."""

    id: str
    choice: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish: FinishReason | None
    extras: dict[str, str | int | float] = {}
    """stop_token: the stop token that ended the choice. cached_tokens, with a choice's first token:
    prompt tokens it found in the cache."""


class Outputs(msgspec.Struct, frozen=True, tag=True):
    step: int
    outputs: list[Output]


class Snapshot(msgspec.Struct, frozen=True, tag=True):
    """State of the engine a few times a second, for admission and metrics; also the heartbeat."""

    step: int
    running: int
    waiting: int
    backlog_tokens: int
    """Prompt tokens not computed yet, of waiting and running requests."""
    live_pages: int
    idle_pages: dict[str, int]
    """Idle pages by retention class; live + idle + free = total."""
    free_pages: int
    total_pages: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    preemptions: int
    drain_tokens_per_s: float = 0.0
    """Recent rate at which the backlog became less while there was one; 0: not known yet."""
    tenant_backlog_tokens: dict[str, int] = {}
    """backlog_tokens by tenant, none that has nothing."""
    evictions: dict[str, int] = {}
    """Pages evicted since the start, by retention class."""
    pre_warmed_tokens: int = 0
    """Computed since the start for messages that had not come yet."""
    pre_warms: int = 0
    """Forms of answered turns that wait for an idle step, or are in work."""
    pre_warm_hit_tokens: int = 0
    """Of pre_warmed_tokens, those that a prompt has found."""
    submits: int = 0
    """Submit messages taken in since the start, the refused ones too; those sent later are not in
    these numbers."""


ToEngine = Submit | Stop | Abort | TurnEnded | Shutdown
FromEngine = Ready | Failed | Accepted | Refused | Outputs | Snapshot
