"""The limits a replica is scheduled within."""

from __future__ import annotations

import msgspec

from scheduler.forms import FormPolicy


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one replica."""

    total_pages: int
    page_tokens: int
    max_model_len: int
    """Longest sequence, prompt and output, in tokens."""
    max_num_seqs: int
    max_num_batched_tokens: int
    max_queued_requests: int
    indexer_workspace_bytes: int
    """Limit of a step's index scores: sum over scored rows of count x context x 4 bytes."""
    forms: FormPolicy
    eos_token_ids: tuple[int, ...]
    prefix_caching: bool = True
    boot_secret: bytes = b""
    weight_version: str = ""
