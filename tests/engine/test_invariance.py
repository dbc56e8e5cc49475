"""--batch-invariant: the same bits alone, in company, in chunks, on reused pages, preempted."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.model import DeepseekV32
from engine.model_config import ModelConfig
from engine.runner import Runner
from scheduler.forms import FormPolicy
from scheduler.logprobs import TokenLogprobs
from scheduler.request import Sampling
from tests.engine.replica import FIELDS, TinyReplica, prompt_of, weights

LENGTHS = (5, 40, 64, 130)
"""Prompts within and beyond top-k (16), and ending on a page."""
SAMPLING = Sampling(max_tokens=8, temperature=0.0, ignore_eos=True, logprobs=3)


class InvariantReplica(TinyReplica):
    """Every row in the one form whose result depends on its sequence alone."""

    def __init__(self, **how: Any) -> None:
        super().__init__(forms=FormPolicy("sparse", FIELDS["index_topk"], 0), **how)
        model = ModelConfig.from_json(FIELDS)
        network = DeepseekV32(model, dict(weights()), batch_invariant=True)
        self.runner = Runner(network, self.cache, eos_token_ids=(1,))


Answer = tuple[list[int], list[TokenLogprobs], Tensor]


def answer_of(replica: TinyReplica, name: str) -> Answer:
    logprobs = [one for news in replica.news[name, 0] for one in news.logprobs or []]
    return replica.tokens[name, 0], logprobs, torch.stack(replica.logits[name, 0])


def same_bits(found: Answer, expected: Answer) -> bool:
    return found[:2] == expected[:2] and torch.equal(found[2], expected[2])


@pytest.fixture(scope="module")
def alone() -> dict[int, Answer]:
    """The answer of each prompt that has a replica to itself, by prompt length."""
    answers = {}
    for length in LENGTHS:
        replica = InvariantReplica()
        replica.run("alone", prompt_of(length, length), SAMPLING)
        answers[length] = answer_of(replica, "alone")
    return answers


def run_in_company(replica: TinyReplica, seed: int) -> None:
    """Runs the prompts named by their lengths among others that come at random times."""
    order = random.Random(seed)
    names = [*LENGTHS, *(-n for n in range(1, order.randint(2, 8)))]
    order.shuffle(names)
    while names or replica.scheduler.has_work:
        while names and order.random() < 0.6:
            name = names.pop()
            length = name if name > 0 else order.randint(1, 150)
            replica.submit(str(name), prompt_of(length, name if name > 0 else seed), SAMPLING)
        replica.step()


@pytest.mark.parametrize("seed", range(20))
def test_random_batches_in_random_chunks(alone: dict[int, Answer], seed: int) -> None:
    replica = InvariantReplica(max_num_batched_tokens=random.Random(seed).choice([3, 17, 64, 512]))
    run_in_company(replica, seed)
    for length, expected in alone.items():
        assert same_bits(answer_of(replica, str(length)), expected)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 50])
def test_any_chunk_size(alone: dict[int, Answer], chunk_tokens: int) -> None:
    replica = InvariantReplica(max_num_batched_tokens=chunk_tokens)
    replica.run("alone", prompt_of(130, 130), SAMPLING)
    assert same_bits(answer_of(replica, "alone"), alone[130])


def test_reused_pages_and_prefix_hits(alone: dict[int, Answer]) -> None:
    replica = InvariantReplica(total_pages=4)
    for n in range(3):
        replica.run(f"former {n}", prompt_of(150, n), SAMPLING)
    replica.run("first", prompt_of(130, 130), SAMPLING)
    assert replica.submit("again", prompt_of(130, 130), SAMPLING) == 128
    replica.finish()
    assert same_bits(answer_of(replica, "first"), alone[130])
    assert same_bits(answer_of(replica, "again"), alone[130])


def test_preemption(alone: dict[int, Answer]) -> None:
    """Tokens computed one by one are recomputed as a prefill."""
    replica = InvariantReplica(total_pages=4)
    names = {"a": 64, "b": 40, "c": 5, "d": 64}
    for name, length in names.items():
        replica.submit(name, prompt_of(length, length), SAMPLING)
    replica.finish()
    assert replica.scheduler.preemptions > 0
    for name, length in names.items():
        assert same_bits(answer_of(replica, name), alone[length])


def test_without_it_the_bits_do_depend_on_the_batch() -> None:
    """Otherwise the tests above would prove nothing."""
    answers = []
    for others in (0, 5):
        replica = TinyReplica("sparse")
        for n in range(others):
            replica.submit(f"other {n}", prompt_of(100 + n, n), SAMPLING)
        replica.run("alone", prompt_of(130, 130), SAMPLING)
        answers.append(answer_of(replica, "alone"))
    assert not same_bits(answers[1], answers[0])
