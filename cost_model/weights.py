"""Bytes of a model's weights by component, as the checkpoint stores them and a GPU holds them."""

from __future__ import annotations

from cost_model.shape import ModelShape
from cost_model.work import BLOCK, ELEMENT_BYTES, WeightDtype


def unquantised(dtype: WeightDtype) -> WeightDtype:
    """What embedding, head, router, weights_proj and eh_proj are stored in: never FP8."""
    return "bf16" if dtype == "fp8" else dtype


def matrix_bytes(rows: int, columns: int, dtype: WeightDtype) -> int:
    """Bytes of one linear weight; FP8 adds one fp32 scale for each started 128 x 128 block."""
    scales = 4 * -(-rows // BLOCK) * -(-columns // BLOCK) if dtype == "fp8" else 0
    return rows * columns * ELEMENT_BYTES[dtype] + scales


def expert_bytes(shape: ModelShape, dtype: WeightDtype = "fp8") -> int:
    """Bytes of one routed expert's three matrices."""
    hidden, width = shape.hidden_size, shape.moe_intermediate_size
    return 2 * matrix_bytes(width, hidden, dtype) + matrix_bytes(hidden, width, dtype)


def _attention_bytes(shape: ModelShape, dtype: WeightDtype) -> int:
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    query = shape.qk_nope_head_dim + shape.qk_rope_head_dim
    latent = shape.kv_lora_rank + shape.qk_rope_head_dim
    return (
        matrix_bytes(shape.q_lora_rank, hidden, dtype)
        + matrix_bytes(heads * query, shape.q_lora_rank, dtype)
        + matrix_bytes(latent, hidden, dtype)
        + matrix_bytes(
            heads * (shape.qk_nope_head_dim + shape.v_head_dim), shape.kv_lora_rank, dtype
        )
        + matrix_bytes(hidden, heads * shape.v_head_dim, dtype)
    )


def _indexer_bytes(shape: ModelShape, dtype: WeightDtype) -> int:
    if not shape.sparse:
        return 0
    plain = unquantised(dtype)
    wide = shape.index_n_heads * shape.index_head_dim
    return (
        matrix_bytes(wide, shape.q_lora_rank, dtype)
        + matrix_bytes(shape.index_head_dim, shape.hidden_size, dtype)
        + matrix_bytes(shape.index_n_heads, shape.hidden_size, plain)
    )


def layer_bytes(shape: ModelShape, dtype: WeightDtype = "fp8") -> dict[str, int]:
    """Bytes of one layer by component: `dense_mlp` of a dense layer, the experts of a MoE layer.

    Norm vectors and the router's bias (68 KB a layer at 671B, in float32) are left out.
    """
    hidden = shape.hidden_size
    plain = unquantised(dtype)
    shared = shape.n_shared_experts * shape.moe_intermediate_size
    dense = shape.intermediate_size
    return {
        "attention_projections": _attention_bytes(shape, dtype),
        "indexer_projections": _indexer_bytes(shape, dtype),
        "dense_mlp": 2 * matrix_bytes(dense, hidden, dtype) + matrix_bytes(hidden, dense, dtype),
        "router": matrix_bytes(shape.n_routed_experts, hidden, plain),
        "routed_experts": shape.n_routed_experts * expert_bytes(shape, dtype),
        "shared_experts": 2 * matrix_bytes(shared, hidden, dtype)
        + matrix_bytes(hidden, shared, dtype),
    }


def weight_bytes(shape: ModelShape, dtype: WeightDtype = "fp8") -> dict[str, int]:
    """Bytes of the main model's matrices by component, all layers, embedding and head included."""
    layer = layer_bytes(shape, dtype)
    plain = unquantised(dtype)
    table = matrix_bytes(shape.vocab_size, shape.hidden_size, plain)
    times = {
        "attention_projections": shape.num_hidden_layers,
        "indexer_projections": shape.num_hidden_layers,
        "dense_mlp": shape.first_k_dense_replace,
    }
    return {name: times.get(name, shape.moe_layers) * size for name, size in layer.items()} | {
        "embedding": table,
        "head": table,
    }


def mtp_bytes(shape: ModelShape, dtype: WeightDtype = "fp8") -> int:
    """Bytes of the MTP layers: a MoE layer and a projection each; embedding and head are shared."""
    layer = layer_bytes(shape, dtype)
    plain = unquantised(dtype)
    one = sum(size for name, size in layer.items() if name != "dense_mlp")
    joined = matrix_bytes(shape.hidden_size, 2 * shape.hidden_size, plain)
    return shape.num_nextn_predict_layers * (one + joined)
