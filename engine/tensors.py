"""The tensors of a DeepSeek-V3.2 checkpoint: names as published, shapes from the configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import msgspec

from engine.model_config import ModelConfig

FP8_BLOCK = 128
"""Rows and columns of a linear weight that share one FP8 scale; edge blocks may be smaller."""

SCALE_SUFFIX = "_scale_inv"
"""`X.weight_scale_inv` multiplies the e4m3 values of `X.weight`, despite its name."""

Role = Literal["linear", "compute", "float32"]
"""How a tensor is stored and held.

linear   [out, in]; stored as FP8 with a scale, or in full; held in the compute dtype
compute  stored in full; held in the compute dtype
float32  stored in full; held as float32: norms, biases, and the three products that decide
         something (router, indexer head weights, logits)
"""


class TensorSpec(msgspec.Struct, frozen=True):
    """What the reader expects under one name."""

    shape: tuple[int, ...]
    role: Role
    shared_with: str | None = None
    """The tensor that stands in when this one is not stored."""


def expected_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Name -> specification of every tensor, MTP layers included, FP8 scales left out."""
    vocab, hidden = config.vocab_size, config.hidden_size
    table = {
        "model.embed_tokens.weight": TensorSpec((vocab, hidden), "compute"),
        "model.norm.weight": TensorSpec((hidden,), "float32"),
        "lm_head.weight": TensorSpec((vocab, hidden), "float32"),
    }
    for layer in range(config.num_layers):
        for name, spec in _layer(config, layer):
            table[f"model.layers.{layer}.{name}"] = spec
    return table


def scale_shape(weight_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the `weight_scale_inv` of an FP8 weight: one scale per block, ragged ones too."""
    return tuple(-(-size // FP8_BLOCK) for size in weight_shape)


def held_bytes(config: ModelConfig, *, compute_bytes: int, keep_fp8: bool) -> int:
    """Bytes of all weights once they are loaded, scales left out; shared ones count once.

    compute_bytes: of one value in the compute dtype. keep_fp8: linears of a checkpoint in FP8 stay
    so; those of another are loaded in the compute dtype before anything is quantised.
    """
    linear_bytes = 1 if keep_fp8 and config.quantization is not None else compute_bytes
    sizes: dict[Role, int] = {"linear": linear_bytes, "compute": compute_bytes, "float32": 4}
    return sum(
        math.prod(spec.shape) * sizes[spec.role]
        for spec in expected_tensors(config).values()
        if spec.shared_with is None
    )


def _layer(config: ModelConfig, layer: int) -> Iterator[tuple[str, TensorSpec]]:
    hidden = config.hidden_size
    yield "input_layernorm.weight", TensorSpec((hidden,), "float32")
    yield "post_attention_layernorm.weight", TensorSpec((hidden,), "float32")
    yield from _attention(config)
    if config.is_moe(layer):
        yield from _experts(config)
    else:
        yield from _gated_mlp("mlp.", hidden, config.intermediate_size)
    if layer in config.mtp_layer_ids:
        yield from _mtp(config)


def _attention(config: ModelConfig) -> Iterator[tuple[str, TensorSpec]]:
    heads, hidden, query_rank = config.num_attention_heads, config.hidden_size, config.q_lora_rank
    latent = config.kv_lora_rank
    linears = {
        "q_a_proj": (query_rank, hidden),
        "q_b_proj": (heads * config.qk_head_dim, query_rank),
        "kv_a_proj_with_mqa": (config.latent_dim, hidden),
        "kv_b_proj": (heads * (config.qk_nope_head_dim + config.v_head_dim), latent),
        "o_proj": (hidden, heads * config.v_head_dim),
        "indexer.wq_b": (config.index_n_heads * config.index_head_dim, query_rank),
        "indexer.wk": (config.index_head_dim, hidden),
    }
    for name, shape in linears.items():
        yield f"self_attn.{name}.weight", TensorSpec(shape, "linear")
    vectors = {
        "q_a_layernorm.weight": query_rank,
        "kv_a_layernorm.weight": latent,
        "indexer.k_norm.weight": config.index_head_dim,
        "indexer.k_norm.bias": config.index_head_dim,
    }
    for name, width in vectors.items():
        yield f"self_attn.{name}", TensorSpec((width,), "float32")
    head_weights = TensorSpec((config.index_n_heads, hidden), "float32")
    yield "self_attn.indexer.weights_proj.weight", head_weights


def _experts(config: ModelConfig) -> Iterator[tuple[str, TensorSpec]]:
    hidden, width = config.hidden_size, config.moe_intermediate_size
    yield "mlp.gate.weight", TensorSpec((config.n_routed_experts, hidden), "float32")
    bias = TensorSpec((config.n_routed_experts,), "float32")
    yield "mlp.gate.e_score_correction_bias", bias
    for expert in range(config.n_routed_experts):
        yield from _gated_mlp(f"mlp.experts.{expert}.", hidden, width)
    yield from _gated_mlp("mlp.shared_experts.", hidden, config.n_shared_experts * width)


def _gated_mlp(prefix: str, hidden: int, width: int) -> Iterator[tuple[str, TensorSpec]]:
    yield f"{prefix}gate_proj.weight", TensorSpec((width, hidden), "linear")
    yield f"{prefix}up_proj.weight", TensorSpec((width, hidden), "linear")
    yield f"{prefix}down_proj.weight", TensorSpec((hidden, width), "linear")


def _mtp(config: ModelConfig) -> Iterator[tuple[str, TensorSpec]]:
    vocab, hidden = config.vocab_size, config.hidden_size
    embedding = TensorSpec((vocab, hidden), "compute", shared_with="model.embed_tokens.weight")
    yield "embed_tokens.weight", embedding
    yield "enorm.weight", TensorSpec((hidden,), "float32")
    yield "hnorm.weight", TensorSpec((hidden,), "float32")
    yield "eh_proj.weight", TensorSpec((hidden, 2 * hidden), "compute")
    yield "shared_head.norm.weight", TensorSpec((hidden,), "float32")
    head = TensorSpec((vocab, hidden), "float32", shared_with="lm_head.weight")
    yield "shared_head.head.weight", head
