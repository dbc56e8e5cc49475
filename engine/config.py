"""How an engine is run: one frozen struct, validated once, at the edge."""

from __future__ import annotations

from math import inf
from typing import Literal

import msgspec

PAGE_TOKENS = 64
"""Tokens of a page: latent rows and index keys of every layer."""

Attention = Literal["auto", "sparse", "dense"]


class ConfigError(ValueError):
    """A setting outside its range; the message names the flag, the value and the range."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one engine replica. Field names are the flags' names."""

    model: str = ""
    """A local folder or a hub id in Hugging Face layout; empty: the embedded checkpoint."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is CUDA where torch finds it, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; auto is float32 on the CPU and bfloat16 on CUDA."""
    attention: Attention = "auto"
    """auto picks a form per row; sparse always scores and selects; dense never selects."""
    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "fp8"] = "auto"
    """Latent cache; auto is the compute dtype on the CPU and fp8 on CUDA."""
    index_dtype: Literal["auto", "float32", "bfloat16", "fp8"] = "auto"
    """Index-key cache and index queries; auto as for kv_cache_dtype."""
    batch_invariant: bool = False
    """A request's tokens and logprobs are the same to the last bit whatever else is in the batch,
    however it was chunked, cached or recomputed. On CUDA with the kernels for Hopper only; not with
    --attention dense."""
    max_model_len: int | None = None
    """Longest sequence in tokens; None: what the checkpoint allows and the pages hold."""
    max_num_seqs: int = 64
    """Sequences running at once."""
    max_num_batched_tokens: int = 512
    """Tokens computed in one step, prefill and decode together; prompts are cut to fit."""
    max_queued_requests: int = 1024
    """Requests waiting, each of their n choices counted; one more is refused with 429."""
    max_queued_tokens: int = 2**20
    """Prompt tokens waiting to be computed; more are refused with 429, except from an API key or
    user that has less than its share of them waiting."""
    inter_token_target_s: float = 0.1
    """Longest step while answers stream: prefill beside them gets the chunk that is predicted to
    fit. 0: no limit but --max-num-batched-tokens."""
    prefill_floor_tokens: int = 64
    """Prompt tokens computed in every step even when there is no time for them."""
    awaited_s: float = 120.0
    """A turn that waits for its tools keeps its pages before all other idle ones for so long."""
    awaited_share: float = 0.5
    """Share of all pages that may be kept so; beyond it the longest wait gives way."""
    cost_doubling_tokens: int = 0
    """Idle pages are evicted by recency and by what they cost to compute again, which doubles at
    this position. 0: by recency alone."""
    max_pre_warms: int = 64
    """Answered turns whose form for the next user message may wait to be computed in idle steps;
    0: none is."""
    indexer_workspace_bytes: int = 128 * 2**20
    """Limit of the indexer's score matrix: the sum over a step's rows of count x context x 4;
    selecting from it takes four times as much at its peak."""
    kv_cache_bytes: int | None = None
    """Memory for pages; None: on the CPU a quarter of what is free, at most 4 GiB; on CUDA what
    --gpu-memory-utilization leaves."""
    gpu_memory_utilization: float = 0.9
    """Share of the CUDA device's memory the engine may fill, weights included."""
    enforce_eager: bool = False
    """Launch the kernels of a decode step one by one, without CUDA graphs."""
    enable_prefix_caching: bool = True
    """Keep pages of ended requests for later prompts that begin alike."""
    silence_limit_s: float = 300.0
    """An engine that sends nothing for so long counts as dead; it reports four times a second
    between steps, so the limit must exceed the longest step."""
    threads: int | None = None
    """CPU threads of the engine; None: OMP_NUM_THREADS, or one per core."""

    def __post_init__(self) -> None:
        def at_least(name: str, low: int) -> None:
            value = getattr(self, name)
            if value is not None and not low <= value < inf:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} is {value}; it must be at least {low}")

        at_least("max_model_len", 2)
        at_least("max_num_seqs", 1)
        at_least("max_num_batched_tokens", 1)
        at_least("max_queued_requests", 1)
        at_least("max_queued_tokens", 1)
        at_least("inter_token_target_s", 0)
        at_least("prefill_floor_tokens", 1)
        at_least("awaited_s", 0)
        at_least("cost_doubling_tokens", 0)
        at_least("max_pre_warms", 0)
        at_least("indexer_workspace_bytes", 1)
        at_least("kv_cache_bytes", 1)
        at_least("threads", 1)
        at_least("silence_limit_s", 1)
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError(
                f"--gpu-memory-utilization is {self.gpu_memory_utilization}; it must be in (0, 1]"
            )
        if not 0.0 <= self.awaited_share <= 1.0:
            raise ConfigError(f"--awaited-share is {self.awaited_share}; it must be in [0, 1]")
        if self.batch_invariant and self.attention == "dense":
            raise ConfigError(
                "--batch-invariant computes every row in the sparse form; "
                "--attention is dense, it must be auto or sparse"
            )
