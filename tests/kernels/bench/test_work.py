"""The benchmark's sizes and counts against those of `cost_model`, which counts on its own."""

from __future__ import annotations

from collections import defaultdict

import pytest

from cost_model.measured import COMPONENTS
from cost_model.shape import V32
from cost_model.work import (
    FORMS,
    causal_pairs,
    index_key_bytes,
    index_pair_flops,
    latent_row_bytes,
    linear_flops,
    pair_flops,
)
from engine.model_config import Yarn
from kernels.bench import attention, case, indexer, products
from kernels.bench.every import every_case

CASES = every_case()
LAYERS = V32.num_hidden_layers


def test_sizes_are_the_models() -> None:
    assert (case.LAYERS, case.DENSE_LAYERS) == (LAYERS, V32.first_k_dense_replace)
    assert (case.HIDDEN, case.VOCABULARY) == (V32.hidden_size, V32.vocab_size)
    assert (case.HEADS, case.QUERY_RANK) == (V32.num_attention_heads, V32.q_lora_rank)
    assert (case.LATENT, case.ROPE) == (V32.kv_lora_rank, V32.qk_rope_head_dim)
    assert (case.NOPE, case.VALUE) == (V32.qk_nope_head_dim, V32.v_head_dim)
    assert case.INDEX_HEADS == V32.index_n_heads and case.INDEX_WIDTH == V32.index_head_dim
    assert case.TOP_K == V32.index_topk
    assert (case.DENSE_WIDTH, case.EXPERT_WIDTH) == (V32.intermediate_size, 2048)
    assert (case.EXPERTS, case.ACTIVE_EXPERTS) == (V32.n_routed_experts, V32.num_experts_per_tok)
    assert case.LATENT_ROW_BYTES == latent_row_bytes(V32, "fp8") == 656
    assert case.INDEX_KEY_BYTES == index_key_bytes(V32, "fp8") == 132
    yarn = Yarn(factor=40.0, original_max_position_embeddings=4096, mscale_all_dim=1.0)
    assert pytest.approx(192**-0.5 * yarn.temperature**2) == case.SOFTMAX_SCALE


def test_attention_counts_the_pairs_flops() -> None:
    work = attention.sparse_work(64, case.HEADS, 2048, 64 * 32_768)
    assert work.flops * LAYERS == 64 * 2048 * pair_flops(V32, "mqa")
    assert attention.mha_work(4096).flops * LAYERS == causal_pairs(0, 4096) * pair_flops(V32, "mha")


def test_a_list_longer_than_the_cache_reads_it_once() -> None:
    rows = attention.sparse_work(4096, 128, 2048, 8192)
    fewer = attention.sparse_work(1, 128, 2048, 8192)
    assert rows.bytes < 4096 * fewer.bytes
    assert rows.bytes > 8192 * 656


def test_index_scores_count_the_pairs_flops_and_keys() -> None:
    pairs = indexer.causal_pairs(8192, 65_536)
    assert pairs == causal_pairs(65_536 - 8192, 8192)
    assert indexer.scores_work(pairs, 65_536, 8192).flops * LAYERS == pairs * index_pair_flops(V32)
    paged = indexer.scores_work(64 * 65_536, 64 * 65_536, 64)
    assert paged.bytes == 64 * (65_536 * (132 + 4) + 64 * 132)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_cases_of_a_component_are_all_of_its_products(phase: str) -> None:
    flops: dict[str, float] = defaultdict(float)
    for one in CASES:
        if one.place is not None and one.place.phase == phase:
            place = one.place
            flops[place.component] += one.work.flops * place.layers / place.tokens
    expected = linear_flops(V32)
    if phase == "prefill":
        del expected["head"]
    # Absorbed, kv_b's two halves are multiplied one after the other, as often as it would be once.
    assert {name: flops[name] for name in expected} == expected


def test_places_name_components_and_forms_of_a_table() -> None:
    for one in CASES:
        if one.place is not None:
            component, _, form = one.place.component.partition(".")
            assert component in COMPONENTS and form in ("", *FORMS)
            assert one.place.tokens > 0 and one.place.context_tokens >= 0


def test_every_op_has_a_quick_case_or_is_small() -> None:
    quick = {one.op for one in CASES if one.quick}
    assert {"sparse_mla", "dense_mha", "indexer_logits", "topk", "fp8_linear"} <= quick
    assert len({(one.op, one.shape) for one in CASES}) == len(CASES)


def test_linears_of_the_layer_are_those_of_the_model() -> None:
    hidden = V32.hidden_size
    assert ("attention_projections", hidden, 16_384, 61) in products.LINEARS
    assert ("attention_projections", 24_576, 1536, 61) in products.LINEARS
    assert ("dense_mlp", hidden, 18_432, 3) in products.LINEARS
