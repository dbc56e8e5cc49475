"""FLOPs and bytes by component: counted, not estimated. A multiplication with addition is 2 FLOPs.

Every function is exact for the products the model must form, and takes positions as arrays. What a
kernel computes beyond that (masked halves of causal tiles, padding) is `computed_pairs`' business.

Attention forms, as in the engine: per pair of query and key, a head multiplies

    mha          dense MHA: keys and values expanded per head     N + R + V
    masked_mha   the same products, restricted by a mask          N + R + V
    mqa          absorbed, over the selected latents              (C + R) + C
    dense_mqa    absorbed, over all latents                       (C + R) + C

with N = qk_nope_head_dim, R = qk_rope_head_dim, V = v_head_dim, C = kv_lora_rank.
Source: DeepSeek-V2 report, eq. 37-47; DeepSeek-V3.2 report, section 2.1.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cost_model.errors import CostError
from cost_model.shape import ModelShape

FloatArray = NDArray[np.float64]
Form = Literal["mha", "masked_mha", "mqa", "dense_mqa"]
FORMS: tuple[Form, ...] = ("mha", "masked_mha", "mqa", "dense_mqa")
SELECTING: tuple[Form, ...] = ("masked_mha", "mqa")
"""The forms for which an indexer scores every visible key; the dense ones never ask it."""
CacheDtype = Literal["fp8", "bf16", "fp32"]
WeightDtype = Literal["fp8", "bf16", "fp32"]

LINEAR = (
    "attention_projections",
    "indexer_projections",
    "dense_mlp",
    "router",
    "routed_experts",
    "shared_experts",
    "head",
)
"""Components whose work does not depend on the position."""
BLOCK = 128
"""Side of the blocks of an FP8 weight, and width of the groups of an FP8 cache row."""
ELEMENT_BYTES: dict[str, int] = {"fp8": 1, "bf16": 2, "fp32": 4}


def as_positions(positions: ArrayLike) -> FloatArray:
    """The positions as float64; raises CostError for a negative, infinite or missing one."""
    values = np.asarray(positions, dtype=np.float64)
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        bad = values[~(np.isfinite(values) & (values >= 0))].flat[0]
        raise CostError(f"position is {bad:g}; allowed: 0 and above, finite")
    return values


def linear_parameters(shape: ModelShape) -> dict[str, int]:
    """Weights that one token is multiplied with, by component, all main layers together."""
    hidden, layers = shape.hidden_size, shape.num_hidden_layers
    expert = 3 * hidden * shape.moe_intermediate_size
    return {
        "attention_projections": layers * sum(_attention_matrices(shape).values()),
        "indexer_projections": layers * sum(_indexer_matrices(shape).values()),
        "dense_mlp": shape.first_k_dense_replace * 3 * hidden * shape.intermediate_size,
        "router": shape.moe_layers * hidden * shape.n_routed_experts,
        "routed_experts": shape.moe_layers * shape.num_experts_per_tok * expert,
        "shared_experts": shape.moe_layers * shape.n_shared_experts * expert,
        "head": hidden * shape.vocab_size,
    }


def _attention_matrices(shape: ModelShape) -> dict[str, int]:
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    query = shape.qk_nope_head_dim + shape.qk_rope_head_dim
    return {
        "q_a_proj": hidden * shape.q_lora_rank,
        "q_b_proj": shape.q_lora_rank * heads * query,
        "kv_a_proj_with_mqa": hidden * (shape.kv_lora_rank + shape.qk_rope_head_dim),
        "kv_b_proj": shape.kv_lora_rank * heads * (shape.qk_nope_head_dim + shape.v_head_dim),
        "o_proj": heads * shape.v_head_dim * hidden,
    }


def _indexer_matrices(shape: ModelShape) -> dict[str, int]:
    return {
        "wq_b": shape.q_lora_rank * shape.index_n_heads * shape.index_head_dim,
        "wk": shape.hidden_size * shape.index_head_dim,
        "weights_proj": shape.hidden_size * shape.index_n_heads,
    }


def linear_flops(shape: ModelShape) -> dict[str, int]:
    """FLOPs of one token by component; the head counts once for a token that is sampled from."""
    return {name: 2 * count for name, count in linear_parameters(shape).items()}


def pair_flops(shape: ModelShape, form: Form) -> int:
    """FLOPs of core attention for one query and one key, all heads of all layers."""
    _require_form(form)
    if form in ("mha", "masked_mha"):
        width = shape.qk_nope_head_dim + shape.qk_rope_head_dim + shape.v_head_dim
    else:
        width = 2 * shape.kv_lora_rank + shape.qk_rope_head_dim
    return 2 * shape.num_hidden_layers * shape.num_attention_heads * width


def index_pair_flops(shape: ModelShape) -> int:
    """FLOPs of the indexer's dot products for one query and one key, all heads of all layers."""
    return 2 * shape.num_hidden_layers * shape.index_n_heads * shape.index_head_dim


def attended(shape: ModelShape, form: Form, context: ArrayLike) -> FloatArray:
    """Keys that core attention multiplies a query with, out of `context` visible ones."""
    _require_form(form)
    values = as_positions(context)
    if form == "mqa" and shape.sparse:
        return np.minimum(values, shape.index_topk)
    return values


def _scored(form: Form, context: FloatArray) -> FloatArray:
    return context if form in SELECTING else np.zeros_like(context)


def attention_flops(shape: ModelShape, form: Form, context: ArrayLike) -> dict[str, FloatArray]:
    """FLOPs of one token's core attention and index scores at each number of visible keys."""
    values = as_positions(context)
    return {
        "core_attention": pair_flops(shape, form) * attended(shape, form, values),
        "indexer": index_pair_flops(shape) * _scored(form, values),
    }


def causal_pairs(start: int, count: int) -> int:
    """Pairs of query and visible key of `count` new tokens after `start`: what must be formed."""
    _require_span(start, count)
    return count * start + count * (count + 1) // 2


def computed_pairs(start: int, count: int) -> int:
    """Pairs in the rectangle of all new tokens and all keys, which a plain product forms."""
    _require_span(start, count)
    return count * (start + count)


def selected_pairs(shape: ModelShape, start: int, count: int) -> int:
    """Pairs of query and selected key of `count` new tokens after `start` (all, if not sparse)."""
    _require_span(start, count)
    if not shape.sparse:
        return causal_pairs(start, count)
    below = min(max(shape.index_topk - start, 0), count)
    return causal_pairs(start, below) + (count - below) * shape.index_topk


def prefix_expansion_flops(shape: ModelShape, prefix: int) -> int:
    """FLOPs of expanding `prefix` cached latents to keys and values: once a chunk, in MHA forms."""
    _require_span(0, prefix)
    return 2 * shape.num_hidden_layers * _attention_matrices(shape)["kv_b_proj"] * prefix


def latent_row_bytes(shape: ModelShape, dtype: CacheDtype) -> int:
    """Bytes of one token's latent in one layer; FP8 rows hold scales and a bfloat16 rope part."""
    latent, rope = shape.kv_lora_rank, shape.qk_rope_head_dim
    if dtype == "fp8":
        return latent + 4 * -(-latent // BLOCK) + 2 * rope
    return ELEMENT_BYTES[dtype] * (latent + rope)


def index_key_bytes(shape: ModelShape, dtype: CacheDtype) -> int:
    """Bytes of one token's index key in one layer; 0 without an indexer. FP8 keys hold a scale."""
    scale = 4 * -(-shape.index_head_dim // BLOCK) if dtype == "fp8" else 0
    return ELEMENT_BYTES[dtype] * shape.index_head_dim + scale


def cache_bytes_per_token(
    shape: ModelShape, latent: CacheDtype = "fp8", index: CacheDtype = "fp8", *, mtp: bool = False
) -> int:
    """Bytes that one token of context occupies, in all main layers (and the MTP layers')."""
    layers = shape.num_hidden_layers + (shape.num_nextn_predict_layers if mtp else 0)
    return layers * (latent_row_bytes(shape, latent) + index_key_bytes(shape, index))


def read_bytes(
    shape: ModelShape,
    form: Form,
    context: ArrayLike,
    latent: CacheDtype = "fp8",
    index: CacheDtype = "fp8",
) -> dict[str, FloatArray]:
    """Cache bytes that one decoded token reads at each context, without sharing between tokens."""
    values, layers = as_positions(context), shape.num_hidden_layers
    rows = attended(shape, form, values)
    return {
        "core_attention": layers * latent_row_bytes(shape, latent) * rows,
        "indexer": layers * index_key_bytes(shape, index) * _scored(form, values),
    }


def _require_form(form: str) -> None:
    if form not in FORMS:
        raise CostError(f"form is {form!r}; allowed: {', '.join(FORMS)}")


def _require_span(start: int, count: int) -> None:
    for name, value in (("start", start), ("count", count)):
        if value < 0:
            raise CostError(f"{name} is {value}; allowed: 0 and above")
