"""--batch-invariant with the kernels on a Hopper GPU: `make gpu`. Never run so far.

What Triton's interpreter cannot show: that the hardware adds a row of a tile in the same order
wherever it stands in it, and that graphs and single launches run the same compiled kernels.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine.llm import LLM, Completion
from engine.messages import Sampling
from tests.gpu.needs_hopper import NEEDS_HOPPER
from tests.gpu.test_engine import GREEDY, engine, prompts

pytestmark = NEEDS_HOPPER
COUNT = 13
"""Prompts of 1 to 333 tokens, within and beyond the top-k of 64."""
DRAWN = Sampling(max_tokens=24, temperature=0.8, seed=5, ignore_eos=True, logprobs=2)


def invariant(**settings: Any) -> LLM:
    return engine(batch_invariant=True, **settings)


def one_by_one(llm: LLM, sampling: Sampling) -> list[Completion]:
    return [llm.generate([prompt], sampling)[0] for prompt in prompts(COUNT)]


def assert_same_bits(found: list[Completion], expected: list[Completion]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == other.logprobs


@pytest.fixture(scope="module")
def alone() -> list[Completion]:
    """Each prompt by itself, kernel by kernel, nothing cached."""
    return one_by_one(invariant(enforce_eager=True, enable_prefix_caching=False), GREEDY)


def test_together_in_graphs(alone: list[Completion]) -> None:
    assert_same_bits(invariant().generate(prompts(COUNT), GREEDY), alone)


def test_twice_from_cached_pages(alone: list[Completion]) -> None:
    llm = invariant()
    for _ in range(2):
        assert_same_bits(llm.generate(prompts(COUNT), GREEDY), alone)


@pytest.mark.parametrize("chunk_tokens", [1, 16, 48, 512])
def test_in_chunks_of_any_size(alone: list[Completion], chunk_tokens: int) -> None:
    llm = invariant(max_num_batched_tokens=chunk_tokens)
    assert_same_bits(llm.generate(prompts(COUNT), GREEDY), alone)


@pytest.mark.parametrize("seed", range(5))
def test_in_random_company(alone: list[Completion], seed: int) -> None:
    """Among 1 to 60 other prompts, in another order, in graphs of other sizes."""
    order = random.Random(seed)
    places = list(range(COUNT + order.randint(1, 60)))
    order.shuffle(places)
    every = prompts(len(places))
    found = invariant(max_num_seqs=order.choice([3, 20, 64])).generate(
        [every[place] for place in places], GREEDY
    )
    by_place = dict(zip(places, found, strict=True))
    assert_same_bits([by_place[place] for place in range(COUNT)], alone)


def test_drawn_tokens_and_their_logprobs() -> None:
    llm = invariant()
    assert_same_bits(llm.generate(prompts(COUNT), DRAWN), one_by_one(llm, DRAWN))


def test_with_bfloat16_latents() -> None:
    llm = invariant(kv_cache_dtype="bfloat16")
    assert_same_bits(llm.generate(prompts(COUNT), GREEDY), one_by_one(llm, GREEDY))
