"""Rows to sample from, and logits for them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from engine.sampler import sample
from engine.sampler_state import SamplerState
from scheduler.request import Sampling

VOCAB = 24


def state(
    prompt: list[int] | None = None,
    generated: list[int] | None = None,
    *,
    choice: int = 0,
    eos: tuple[int, ...] = (1,),
    **fields: Any,
) -> SamplerState:
    tokens = [*(prompt or []), *(generated or [])]
    sampling = Sampling(**{"max_tokens": 100} | fields)
    return SamplerState.start(sampling, choice, tokens, len(prompt or []), eos)


def logits_of(seed: int = 0, vocab: int = VOCAB) -> Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 2


def draws(logits: Tensor, count: int, **fields: Any) -> Counter[int]:
    """How often each token is drawn over `count` seeds."""
    rows = [state(seed=seed, **fields) for seed in range(count)]
    return Counter(sample(logits.expand(count, -1), rows, [7] * count))
