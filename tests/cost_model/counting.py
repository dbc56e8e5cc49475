"""Counts the products that models really form, by the cost model's components.

The models are not ours: transformers' DeepSeek-V3.2, whose products are plain (the engine's are
padded for speed), at a shape that computes in milliseconds and, on the meta device, at 671B. It
attends in the expanded (MHA) form; `absorb` turns it into the MQA form, and since the logits stay
the same, what is counted is a computation of this model and not a formula of this file.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

import engine
from cost_model.shape import ModelShape

EMBEDDED = Path(engine.__file__).parent / "embedded" / "deepseek-v3.2-tiny"

PUBLISHED: dict[str, Any] = {
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "hidden_act": "silu",
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 2048,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
"""The `config.json` of DeepSeek-V3.2, written out, so that no constant is checked by itself."""

COMPONENTS = {
    r"lm_head": "head",
    r"self_attn": "core_attention",
    r"self_attn\.indexer": "indexer",
    r"self_attn\.indexer\.(wq_b|wk|weights_proj)": "indexer_projections",
    r"self_attn\.((q_a|q_b|kv_b|o)_proj|kv_a_proj_with_mqa)": "attention_projections",
    r"mlp\.(gate|up|down)_proj": "dense_mlp",
    r"mlp\.gate": "router",
    r"mlp\.experts": "routed_experts",
    r"mlp\.shared_experts\.(gate|up|down)_proj": "shared_experts",
}
"""Module -> the component that its own products, those of its submodules left out, belong to."""


def linear_product_flops(x: tuple[int, ...], *shapes: Any, **_: Any) -> int:
    """MKL's packed linear: x, the packed weight, the weight [out, in] it was packed from, ..."""
    rows, columns = shapes[1]
    return 2 * math.prod(x[:-1]) * rows * columns


def vector_product_flops(matrix: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


MORE_PRODUCTS: dict[Any, Any] = {
    torch.ops.aten.mv: vector_product_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
}
"""Products that an engine on the CPU may form and torch's counter does not know."""
if hasattr(torch.ops.mkl, "_mkl_linear"):
    MORE_PRODUCTS[torch.ops.mkl._mkl_linear] = linear_product_flops


def embedded_fields(**overrides: Any) -> dict[str, Any]:
    """The embedded checkpoint's `config.json`; its weights are not needed to count products."""
    fields: dict[str, Any] = json.loads((EMBEDDED / "config.json").read_bytes())
    del fields["quantization_config"]
    return fields | overrides


def epilogue_flops(shape: ModelShape) -> int:
    """FLOPs per pair of weighting the index heads' dots and adding them up, in all layers.

    transformers forms this as a product too. The cost model counts the dots only: at 671B this is
    1/128 of them, and a kernel does it in the registers the dots are in.
    """
    return 2 * shape.num_hidden_layers * shape.index_n_heads


def build(fields: dict[str, Any], device: str) -> Any:
    """transformers' model of these fields with random weights, or none on the meta device.

    Experts compute the tokens routed to them one expert after the other, as in any engine; on the
    meta device, where the routing has no values, each token's experts are gathered instead.
    """
    from transformers import DeepseekV32Config, DeepseekV32ForCausalLM

    scale = fields["hidden_size"] ** -0.5
    config = DeepseekV32Config(
        **fields | {"initializer_range": scale},
        attn_implementation="eager",
        experts_implementation="batched_mm" if device == "meta" else "eager",
    )
    torch.manual_seed(0)
    with torch.device(device):
        return DeepseekV32ForCausalLM(config).eval()


class AbsorbedExpansion(nn.Module):
    """`kv_b_proj` applied to queries and to averages of latents instead of to latents.

    Source: DeepSeek-V2 report, section 2.1.2: W_UK is absorbed into W_UQ, W_UV into W_O.
    """

    def __init__(self, linear: nn.Linear, heads: int, nope: int) -> None:
        super().__init__()
        per_head = linear.weight.detach().view(heads, -1, linear.in_features)
        self.keys = nn.Parameter(per_head[:, :nope])  # [H, N, C]
        self.values = nn.Parameter(per_head[:, nope:])  # [H, V, C]

    def forward(self, x: Tensor, *, queries: bool) -> Tensor:
        """[B, H, S, N] -> [B, H, S, C] for queries, else [B, H, S, C] -> [B, H, S, V]."""
        return x @ self.keys if queries else x @ self.values.transpose(1, 2)


def keep_latents(latents: Tensor, rope_keys: Tensor) -> tuple[Tensor, Tensor]:
    """Stands in for the expansion of a context [B, 1, T, C], [B, 1, T, R] to keys and values."""
    return torch.cat((latents, rope_keys), dim=-1), latents


def absorbed_attention(
    attention: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    indices: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Each query [B, H, S, N + R] over its chosen latents: `indices` [B, S, K] of T rows."""
    nope, rope = query.split((attention.qk_nope_head_dim, attention.qk_rope_head_dim), dim=-1)
    queries = torch.cat((attention.kv_b_proj(nope, queries=True), rope), dim=-1).transpose(1, 2)
    chosen = indices.long()
    sequence = torch.arange(len(chosen), device=chosen.device)[:, None, None]
    rows = key[:, 0][sequence, chosen]  # [B, S, K, C + R]
    mask = attention_mask[:, 0].gather(-1, chosen)[:, :, None]
    weights = (queries @ rows.transpose(2, 3) * scaling + mask).softmax(dim=-1)
    averages = weights @ rows[..., : value.shape[-1]]  # [B, S, H, C]
    return attention.kv_b_proj(averages.transpose(1, 2), queries=False).transpose(1, 2), None


def absorb(model: Any) -> Any:
    """Turns the model's attention into the MQA form, in place; its function stays the same."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register("absorbed", absorbed_attention)
    AttentionMaskInterface.register("absorbed", eager_mask)
    config = model.config
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.kv_b_proj = AbsorbedExpansion(
            attention.kv_b_proj, config.num_attention_heads, config.qk_nope_head_dim
        )
        attention.expand_kv = keep_latents
    config._attn_implementation = "absorbed"
    return model


@torch.inference_mode()
def run(model: Any, start: int, count: int, rows: int = 1) -> tuple[Tensor, dict[str, int]]:
    """Logits [rows, 1, vocab] and FLOPs by component of `count` tokens after `start` cached ones.

    The same in each row of a batch; the logits, and so the head's FLOPs, are the last token's.
    """
    from transformers import DynamicCache

    device = model.lm_head.weight.device
    generator = torch.Generator().manual_seed(1)
    shape = (rows, start + count)
    ids = torch.randint(model.config.vocab_size, shape, generator=generator).to(device)
    cache = DynamicCache(config=model.config)
    arguments = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    if start:
        model(ids[:, :start], **arguments)
    with FlopCounterMode(display=False) as counter:
        logits = model(ids[:, start:], **arguments).logits
    return logits, by_component(counter)


def by_component(counter: FlopCounterMode) -> dict[str, int]:
    """The counted FLOPs by component; fails if a product belongs to none."""
    totals = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    own = Counter(totals)
    for name, flops in totals.items():
        parent = name.rpartition(".")[0]
        while parent and parent not in totals:
            parent = parent.rpartition(".")[0]
        if name != "Global":
            own[parent or "Global"] -= flops
    components: Counter[str] = Counter()
    for name, flops in own.items():
        if flops:
            (component,) = [
                component
                for pattern, component in COMPONENTS.items()
                if re.fullmatch(rf"\w+\.(model\.layers\.\d+\.)?{pattern}", name)
            ]
            components[component] += flops
    assert components.total() == counter.get_total_flops()
    return dict(components)
