"""Draws on a Hopper GPU: `make gpu`. Never run so far: no GPU was at hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.llm import LLM
from engine.sampler import choose, packed, unpacked
from engine.sampler_state import SamplerState
from engine.token_masks import AllowedTokens
from kernels import sampling
from scheduler.request import ReasoningBudget, Sampling
from tests.gpu.needs_hopper import NEEDS_HOPPER

pytestmark = NEEDS_HOPPER

VOCABULARIES = [3072, 129_280]
"""The embedded checkpoint's and DeepSeek-V3.2's."""
ASKED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 1.7, "top_k": 50},
    {"temperature": 0.3, "min_p": 0.05},
    {"temperature": 1.2, "top_k": 2**31 - 1, "top_p": 1e-9},
    {"temperature": 1e-5, "top_k": 3, "top_p": 0.5, "min_p": 0.1},
    {"temperature": 40.0, "top_p": 0.999},
]


def drawn_rows(count: int) -> list[SamplerState]:
    return [
        SamplerState.start(Sampling(max_tokens=9, seed=n, **ASKED[n % 8]), n % 3, [], 0, ())
        for n in range(count)
    ]


def drawn_logits(rows: int, vocabulary: int) -> Tensor:
    """Sharp and flat rows; some with many ties, some with NaN and with forbidden tokens."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(rows, vocabulary, generator=generator)
    logits *= torch.tensor([0.2, 1.0, 3.0, 9.0, 30.0]).repeat(rows)[:rows, None]
    logits[::3] = logits[::3].round()
    logits[1::7, ::5], logits[2::7, 100:] = torch.nan, -torch.inf
    logits[5] = torch.nan
    return logits


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_tokens_are_those_of_the_cpu(vocabulary: int) -> None:
    """By the kernel and by PyTorch's operators on the GPU; exactly, in every row."""
    from kernels.hopper.sampling import sample

    rows = drawn_rows(200)
    logits = drawn_logits(len(rows), vocabulary)
    settings = torch.tensor(packed(rows, range(len(rows))))
    expected = sampling.sample(logits, *unpacked(settings, len(rows))).tolist()
    there = unpacked(settings.cuda(), len(rows))
    assert sample(logits.cuda(), *there).tolist() == expected
    assert sampling.sample(logits.cuda(), *there).tolist() == expected


def demanding(slot: int) -> SamplerState:
    """A row with some of everything that adjusts logits."""
    kinds: list[dict[str, Any]] = [
        {},
        {"logit_bias": {40: 4.0, 41: -50.0}},
        {"allowed_token_ids": (50, 51, 52)},
        {"bad_words": ((60,), (7, 61))},
        {"frequency_penalty": 0.7, "presence_penalty": -0.3, "repetition_penalty": 1.6},
        {"min_tokens": 9, "stop_token_ids": (70, 71)},
        {"reasoning": ReasoningBudget(2, end_token=80)},
    ]
    how = Sampling(max_tokens=20, seed=slot, **kinds[slot % 7])
    return SamplerState.start(how, 0, [5, 6, 7, 7], 2, (1,))


def test_nothing_before_the_tokens_are_read_waits_for_the_host() -> None:
    from engine.hopper.sampler import StagedDraws

    rows, again, fresh = ([demanding(slot) for slot in range(14)] for _ in range(3))
    positions = [4] * 14
    logits = drawn_logits(14, 3072)
    masks = torch.rand(2, 3072, generator=torch.Generator().manual_seed(1)) < 0.5
    expected = choose(logits, rows, positions, AllowedTokens([3, 9], masks)).tolist()
    draws, there = StagedDraws(), logits.cuda()
    draws.arrived(torch.tensor(packed(rows, positions)).cuda(), len(rows))
    allowed = AllowedTokens([3, 9], masks.cuda())
    choose(there, again, positions, allowed, draws)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        tokens = choose(there, fresh, positions, allowed, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tokens.tolist() == expected


def test_the_same_seeds_give_the_same_answers_again() -> None:
    llm = LLM("", progress=False, device="cuda", kv_cache_bytes=2**28, max_model_len=4096)
    how = [Sampling(max_tokens=12, ignore_eos=True, seed=seed) for seed in range(9)]
    once, again = (llm.generate([[300, 301, 302]] * 9, how) for _ in range(2))
    assert [found.token_ids for found in once] == [found.token_ids for found in again]
    assert len({tuple(found.token_ids) for found in once}) > 1
