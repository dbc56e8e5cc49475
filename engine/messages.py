"""Messages between the API process and the engine process.

One local socket, msgspec's MessagePack, a tag per type. Never pickle.

    Submit -> Accepted | Refused, then Outputs until every choice had its one terminal event
"""

from __future__ import annotations

from typing import Literal

import msgspec

from scheduler.logprobs import TokenLogprobs
from scheduler.plan import Form
from scheduler.request import FinishReason, ReasoningBudget, Sampling, Span

__all__ = [
    "Abort",
    "Accepted",
    "Failed",
    "FinishReason",
    "FromEngine",
    "Grammar",
    "Output",
    "Outputs",
    "Profile",
    "Profiled",
    "Ready",
    "ReasoningBudget",
    "Refused",
    "Sampling",
    "Shutdown",
    "Snapshot",
    "Span",
    "StepStats",
    "Steps",
    "Stop",
    "Submit",
    "ToEngine",
    "TokenLogprobs",
    "TurnEnded",
]


class Grammar(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an answer must look like, from some point on."""

    source: str
    """A grammar as llguidance reads it. Control tokens stand in it by their ids, `<[128799]>`."""
    after_token: int | None = None
    """The grammar starts behind the first of these tokens; None: with the first token."""
    required: bool = True
    """Until it starts the choice may not end, and of the control tokens only `after_token` may
    come. Otherwise nothing is constrained until then, and it need not start at all."""
    param: str | None = None
    """The request's field that asked for it; a refusal names it."""


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
    grammar: Grammar | None = None
    """Holds for every choice. Compiled before the request is queued; Refused if it cannot be."""


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


class Profile(msgspec.Struct, frozen=True, tag=True):
    """Profile the next `steps` steps into `file`; answered by one Profiled."""

    steps: int
    file: str


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
    machine: str = "cpu"
    """The device's data sheet in the cost model."""


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
    prompt_logprobs: list[TokenLogprobs] | None = None
    """With the first token of the first choice, where they were asked for: of every prompt token
    but the first."""


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
    kept_reasoning_tokens: int = 0
    """Reasoning at the end of turns that wait for their tools, since the start: the next prompt
    holds it."""
    dropped_reasoning_tokens: int = 0
    """Reasoning at the end of answered turns, since the start: the next prompt is without it."""


class StepStats(msgspec.Struct, frozen=True, array_like=True):
    """What one step was. A token's context is what it can attend to, itself included."""

    seconds: float
    """Of its execution, as measured."""
    predicted_s: float
    """What it was to take; 0: nothing was predicted."""
    overhead_s: float
    """Of planning it and taking its tokens in."""
    decode_rows: int
    decode_context_tokens: int
    """Sums over the decode rows, as the next two: of their contexts,"""
    decode_selected_tokens: int
    """of the tokens they attend to,"""
    decode_scored_tokens: int
    """of the tokens their indexer scores."""
    prefills: list[tuple[int, int, Form]]
    """(position of the first token, tokens, form of attention) of each prefill row."""
    pre_warmed_tokens: int
    """Of the prefilled ones, those of turns to come."""
    first_tokens: int
    """Choices that got their first token."""
    gaps: list[tuple[float, int]]
    """(seconds since the token before, tokens) for each distinct gap."""
    waits_s: list[float]
    """Of the choices that started, the time since they were queued."""
    prompts: list[tuple[int, int]]
    """Of the same choices, (prompt tokens, of these found in the cache)."""


class Profiled(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A profile is written, or why it is not."""

    file: str
    steps: int
    error: str | None = None


class Steps(msgspec.Struct, frozen=True, tag=True):
    """The steps since the message before, in order; comes before each Snapshot, if any ran."""

    steps: list[StepStats]


ToEngine = Submit | Stop | Abort | TurnEnded | Profile | Shutdown
FromEngine = Ready | Failed | Accepted | Refused | Outputs | Snapshot | Steps | Profiled
