from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.cache import CacheDtype
from kernels.fp8 import round_trip
from kernels.hadamard import hadamard
from kernels.rope import rope_table
from scheduler.request import Sampling
from tests.engine.replica import FIELDS, GREEDY, TinyReplica, prompt_of

TOP_K = FIELDS["index_topk"]
ATTENTIONS = ["auto", "sparse", "dense"]


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def fresh(attention: str, prompt: list[int], sampling: Sampling = GREEDY, **how: Any) -> Tensor:
    """Logits of a request that has a replica to itself."""
    return TinyReplica(attention, **how).run("alone", prompt, sampling)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_step_that_mixes_prefill_and_decode_equals_separate_steps(attention: str) -> None:
    first, second = prompt_of(90, 1), prompt_of(150, 2)
    replica = TinyReplica(attention, max_num_batched_tokens=40)
    replica.submit("first", first)
    while not replica.tokens["first", 0]:
        replica.step()
    replica.submit("second", second)
    plan = replica.step()
    assert sorted(row.count for row in plan.rows) == [1, 39]
    replica.finish()
    same(torch.stack(replica.logits["first", 0]), fresh(attention, first))
    same(torch.stack(replica.logits["second", 0]), fresh(attention, second))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_decoding_together_equals_decoding_alone(attention: str) -> None:
    """Contexts of very different lengths are padded to the longest of their group."""
    prompts = {f"r{n}": prompt_of(n, n) for n in (1, 13, 64, 65, 200)}
    replica = TinyReplica(attention)
    for name, prompt in prompts.items():
        replica.submit(name, prompt)
    replica.finish()
    for name, prompt in prompts.items():
        same(torch.stack(replica.logits[name, 0]), fresh(attention, prompt))


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, 100])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_chunked_prefill_equals_one_shot(attention: str, chunk_tokens: int) -> None:
    prompt, once = prompt_of(130), Sampling(max_tokens=1, temperature=0.0)
    chunked = fresh(attention, prompt, once, max_num_batched_tokens=chunk_tokens)
    same(chunked, fresh(attention, prompt, once))


def test_auto_equals_sparse_and_dense_differs_only_beyond_top_k() -> None:
    within, beyond = prompt_of(TOP_K - 1), prompt_of(8 * TOP_K)
    once = Sampling(max_tokens=1, temperature=0.0)
    for prompt in (within, beyond):
        same(fresh("auto", prompt), fresh("sparse", prompt))
    same(fresh("dense", within, once), fresh("sparse", within, once))
    assert (fresh("dense", beyond, once) - fresh("sparse", beyond, once)).abs().max() > 0.1


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("latent", ["float32", "fp8"])
def test_what_lies_in_unused_slots_never_reaches_a_result(
    attention: str, latent: CacheDtype
) -> None:
    prompts = {f"r{n}": prompt_of(n, n) for n in (5, 70, 130)}
    expected = {name: fresh(attention, p, latent=latent) for name, p in prompts.items()}
    replica = TinyReplica(attention, latent=latent)
    if latent == "fp8":
        replica.cache.latents.rows.fill_(0xFF)  # every byte of a NaN, in e4m3, float32 and bf16
    else:
        replica.cache.latents.rows.fill_(torch.nan)
    replica.cache.index_keys.pages.fill_(torch.nan)
    for name, prompt in prompts.items():
        replica.submit(name, prompt)
    replica.finish()
    for name, logits in expected.items():
        same(torch.stack(replica.logits[name, 0]), logits)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_reused_page_forgets_its_former_owner(attention: str) -> None:
    replica = TinyReplica(attention, total_pages=3)
    for n in range(4):
        replica.run(f"former {n}", prompt_of(150, n))
    same(replica.run("next", prompt_of(140, 9)), fresh(attention, prompt_of(140, 9)))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_prefix_hit_equals_recomputing_it(attention: str) -> None:
    prompt = prompt_of(200)
    replica = TinyReplica(attention)
    replica.run("first", prompt[:150])
    assert replica.submit("second", prompt) == 128
    replica.finish()
    same(torch.stack(replica.logits["second", 0]), fresh(attention, prompt))


@pytest.mark.parametrize("attention", ["auto", "dense"])
def test_preempted_requests_go_on_as_if_nothing_had_happened(attention: str) -> None:
    how = Sampling(max_tokens=30, temperature=0.8, seed=5, frequency_penalty=0.5, logprobs=2)
    prompts = {f"r{n}": prompt_of(50 + n, n) for n in range(4)}
    replicas = [TinyReplica(attention, total_pages=5), TinyReplica(attention, total_pages=32)]
    for replica in replicas:
        for name, prompt in prompts.items():
            replica.submit(name, prompt, how)
        replica.finish()
    small, large = replicas
    assert small.scheduler.preemptions > 0 and large.scheduler.preemptions == 0
    assert small.tokens == large.tokens
    assert small.scheduler.pool.live_pages == 0


def test_choices_of_one_request_differ_and_repeat_with_the_seed() -> None:
    how = Sampling(max_tokens=8, temperature=1.5, seed=11, ignore_eos=True)
    answers = []
    for _ in range(2):
        replica = TinyReplica()
        replica.submit("a", prompt_of(70), how, n=3)
        replica.finish()
        answers.append([replica.tokens["a", choice] for choice in range(3)])
    assert answers[0] == answers[1]
    assert len({tuple(tokens) for tokens in answers[0]}) == 3
    assert all(len(tokens) == 8 for tokens in answers[0])


def test_logprobs_come_with_every_token_when_asked_for_and_only_then() -> None:
    replica = TinyReplica()
    asked = Sampling(
        max_tokens=4, temperature=0.0, logprobs=3, ignore_eos=True, logit_bias={9: 100}
    )
    replica.submit("asked", prompt_of(20), asked)
    replica.submit("not asked", prompt_of(20, 1))
    replica.finish()
    for line, news in zip(replica.logits["asked", 0], replica.news["asked", 0], strict=True):
        assert news.token_ids == [9], "the bias decides"
        (found,) = news.logprobs or []
        expected = line.double().log_softmax(0)  # of the model, before the bias
        assert found.logprob == pytest.approx(expected[9].item(), abs=1e-4)
        assert [token for token, _ in found.top] == expected.topk(3).indices.tolist()
    assert all(news.logprobs is None for news in replica.news["not asked", 0])


@pytest.mark.parametrize(
    ("latent", "index"),
    [("bfloat16", "bfloat16"), ("fp8", "fp8"), ("fp8", "float32"), ("float32", "fp8")],
)
def test_rounded_caches_change_logits_a_little_and_the_same_way_in_any_chunks(
    latent: CacheDtype, index: CacheDtype
) -> None:
    prompt = prompt_of(130)
    caches: dict[str, Any] = {"latent": latent, "index": index}
    attention = "sparse" if index != "float32" else "dense"
    exact, rounded = fresh(attention, prompt), fresh(attention, prompt, **caches)
    assert rounded.isfinite().all()
    assert 1e-4 < (rounded[0] - exact[0]).abs().max()
    if latent == "fp8" and attention == "dense":
        assert (rounded[0] - exact[0]).abs().max() < 1.0
    same(fresh(attention, prompt, max_num_batched_tokens=30, **caches), rounded)


def test_fp8_rounds_index_queries_as_it_rounds_keys() -> None:
    x = torch.randn(3, FIELDS["q_lora_rank"], generator=torch.Generator().manual_seed(1))
    width, rope = FIELDS["index_head_dim"], FIELDS["qk_rope_head_dim"]
    table = rope_table(torch.ones(rope // 2), torch.tensor([0, 5, 900]))
    exact, rounded = (
        TinyReplica(index=index).runner.model.layers[0].attention.indexer.queries(x, table)
        for index in ("float32", "fp8")
    )
    assert torch.equal(rounded, round_trip(hadamard(exact), width))
    assert not torch.equal(rounded, exact)


def test_ended_sequences_leave_no_mirror() -> None:
    replica = TinyReplica()
    for n in range(3):
        replica.submit(f"r{n}", prompt_of(30, n))
    replica.step()
    replica.scheduler.abort("r1")
    replica.finish()
    assert not replica.runner.slots
    assert replica.scheduler.pool.live_pages == 0
