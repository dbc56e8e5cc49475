"""The published numbers that the preset `roofline` is made of, each with its source."""

from __future__ import annotations

import msgspec

TABLES = "NVIDIA AIConfigurator, performance tables of an H100 SXM with SGLang 0.5"


class Input(msgspec.Struct, frozen=True):
    """One published number."""

    value: float
    unit: str
    source: str


INPUTS: dict[str, Input] = {
    "prefill.attention_projections": Input(
        323e-9, "s/token/layer", f"{TABLES}: MLA module, 4,096 tokens, less its core attention"
    ),
    "prefill.indexer_projections": Input(
        236e-9,
        "s/token/layer",
        f"{TABLES}: DSA module, 8,192 tokens, less core, indexer and top-k (559 ns), less 323 ns",
    ),
    "prefill.dense_mlp": Input(720e-9, "s/token/layer", "DeepGEMM README: FP8 at 1.1 PFLOPS"),
    "prefill.routed_experts": Input(
        871e-9, "s/token/layer", f"{TABLES}: MoE EP32, uniform routing, 16,384 tokens per GPU"
    ),
    "prefill.shared_experts": Input(
        73e-9, "s/token/layer", f"{TABLES}: FP8 block GEMM, 8,192 to 16,384 tokens"
    ),
    "prefill.sms_for_communication": Input(
        24 / 132, "share of SMs", "DeepEP README: 24 SMs in the high-throughput kernels"
    ),
    "prefill.core.mha": Input(711e12, "FLOP/s", f"{TABLES}: FlashAttention 3, MLA prefill"),
    "prefill.core.mqa": Input(590e12, "FLOP/s", f"{TABLES}: sparse MLA prefill"),
    "prefill.indexer": Input(890e12, "FLOP/s", f"{TABLES}: MQA logits, FP8, 32 heads"),
    "prefill.top_k": Input(
        3e-12, "s/context token/layer", f"{TABLES}: fused top-k, slope 32K to 128K"
    ),
    "decode.attention_projections.128": Input(
        134.3e-6, "s/step/layer", f"{TABLES}: MLA module, batch 128, no context"
    ),
    "decode.attention_projections.256": Input(
        188.5e-6, "s/step/layer", f"{TABLES}: MLA module, batch 256, no context"
    ),
    "decode.with_indexer.128": Input(
        211.6e-6, "s/step/layer", f"{TABLES}: DSA module, bf16 cache, batch 128, no context"
    ),
    "decode.with_indexer.256": Input(
        273.8e-6, "s/step/layer", f"{TABLES}: DSA module, bf16 cache, batch 256, no context"
    ),
    "decode.with_indexer_fp8.128": Input(
        336.9e-6, "s/step/layer", f"{TABLES}: DSA module, FP8 cache, batch 128, no context"
    ),
    "decode.routed_experts.128": Input(
        94e-6, "s/step/layer", f"{TABLES}: MoE EP128, uniform routing, 128 tokens per GPU"
    ),
    "decode.routed_experts.256": Input(
        110e-6, "s/step/layer", f"{TABLES}: MoE EP128, uniform routing, 256 tokens per GPU"
    ),
    "decode.shared_experts.128": Input(28.8e-6, "s/step/layer", f"{TABLES}: FP8 GEMM, 128 rows"),
    "decode.shared_experts.256": Input(33.4e-6, "s/step/layer", f"{TABLES}: FP8 GEMM, 256 rows"),
    "decode.dense_mlp.128": Input(153.6e-6, "s/step/layer", f"{TABLES}: FP8 GEMM, 128 rows"),
    "decode.dense_mlp.256": Input(230.4e-6, "s/step/layer", f"{TABLES}: FP8 GEMM, 256 rows"),
    "decode.head.128": Input(614.4e-6, "s/step", f"{TABLES}: bf16 GEMM, 128 rows"),
    "decode.head.256": Input(768e-6, "s/step", f"{TABLES}: bf16 GEMM, 256 rows"),
    "decode.core.dense_mqa": Input(594e12, "FLOP/s", f"{TABLES}: FlashAttention 3, MLA decode"),
    "decode.core.mqa": Input(
        410e12, "FLOP/s", "FlashMLA README: sparse decode, FP8 cache, batch 128, 128 heads"
    ),
    "decode.indexer.bandwidth": Input(
        0.9, "share of memory bandwidth", "DeepGEMM README: paged MQA logits are read-bound"
    ),
    "decode.tokens_per_read": Input(
        1.85, "tokens", "DeepSeek-V3 report, section 5.4.3: second token accepted in 85 to 90 %"
    ),
}
"""Every number that `roofline` takes from outside: an H100 SXM at the shape of the 671B model."""
