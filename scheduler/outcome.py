"""What the scheduler says of a request: refused, or news of its choices."""

from __future__ import annotations

import msgspec

from scheduler.logprobs import TokenLogprobs
from scheduler.request import FinishReason


class Refusal(msgspec.Struct, frozen=True):
    """Why a request cannot be taken; an HTTP status and the field it is about."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    """When the same request will probably be taken; None: never as it is, or not known."""


class Choice(msgspec.Struct, frozen=True):
    """News of one choice after a step."""

    request_id: str
    choice: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish: FinishReason | None
    stop_token: int | None = None
    cached_tokens: int | None = None
    """With a choice's first token: how much of its prompt was found in the cache."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """With it, too, where they were asked for: of every prompt token but the first."""
