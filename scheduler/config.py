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
    inter_token_target_s: float | None = None
    """Longest step while answers stream, as far as prefill can help it; None: no limit."""
    prefill_floor_tokens: int = 64
    """What a prompt gets of each step even when there is no time for it."""
    awaited_s: float = 120.0
    """How long the pages of a turn that waits for its tools are kept before all others."""
    awaited_share: float = 0.5
    """Of all pages, the most that are kept so."""
    cost_doubling_tokens: int = 0
    """Position at which a token costs twice as much to compute as the first; 0: all cost alike."""
    max_pre_warms: int = 64
    """Dropped forms of answered turns that may wait for an idle step; 0: no pre-warming."""
    pre_warm_unused_s: float = 60.0
    """Pages that were in use within so many seconds are not given up for a pre-warm: their
    conversations may go on before the one that it is for."""
