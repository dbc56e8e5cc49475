"""The shape of the embedded model, with the field names of a DeepSeek-V3.2 `config.json`."""

from __future__ import annotations

import math
from typing import Any

import msgspec


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Shape and constants of a DeepSeek-V3.2 model; every field is a `config.json` field."""

    vocab_size: int
    hidden_size: int = 256
    num_hidden_layers: int = 4
    first_k_dense_replace: int = 1
    num_nextn_predict_layers: int = 1
    intermediate_size: int = 512
    moe_intermediate_size: int = 128
    n_routed_experts: int = 16
    n_shared_experts: int = 1
    num_experts_per_tok: int = 4
    n_group: int = 4
    topk_group: int = 2
    routed_scaling_factor: float = 2.5
    num_attention_heads: int = 16
    q_lora_rank: int = 128
    kv_lora_rank: int = 128
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 32
    v_head_dim: int = 32
    index_n_heads: int = 8
    index_head_dim: int = 128
    index_topk: int = 64
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    yarn_factor: float = 32.0
    original_max_position_embeddings: int = 4096
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head: the non-rotary part and the rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def max_position_embeddings(self) -> int:
        """Longest position count that the YaRN table covers, in tokens."""
        return int(self.original_max_position_embeddings * self.yarn_factor)

    def softmax_scale(self, yarn: bool) -> float:
        """Factor on the attention logits; YaRN multiplies it by m^2, m = 0.1 ln(factor) + 1."""
        scale = self.qk_head_dim**-0.5
        if not yarn:
            return scale
        return scale * (0.1 * math.log(self.yarn_factor) + 1.0) ** 2

    @classmethod
    def from_hf(cls, fields: dict[str, Any]) -> ModelConfig:
        """The config in the content of a `config.json`; fields of no use here are ignored."""
        yarn = fields["rope_scaling"]
        original = yarn["original_max_position_embeddings"]
        known = {name: fields[name] for name in cls.__struct_fields__ if name in fields}
        return cls(
            **known,
            yarn_factor=float(yarn["factor"]),
            original_max_position_embeddings=original,
            yarn_beta_fast=float(yarn["beta_fast"]),
            yarn_beta_slow=float(yarn["beta_slow"]),
        )

    def to_hf(self) -> dict[str, Any]:
        """Content of `config.json`, FP8 checkpoint included."""
        derived = ("yarn_factor", "original_max_position_embeddings", "yarn_beta_fast")
        shape = {
            name: value
            for name, value in msgspec.structs.asdict(self).items()
            if name not in (*derived, "yarn_beta_slow")
        }
        return {
            "architectures": ["DeepseekV32ForCausalLM"],
            "model_type": "deepseek_v32",
            **shape,
            "num_key_value_heads": self.num_attention_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_scaling": {
                "type": "yarn",
                "factor": self.yarn_factor,
                "original_max_position_embeddings": self.original_max_position_embeddings,
                "beta_fast": self.yarn_beta_fast,
                "beta_slow": self.yarn_beta_slow,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
            "hidden_act": "silu",
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "norm_topk_prob": True,
            "moe_layer_freq": 1,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": False,
            "use_cache": True,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "torch_dtype": "bfloat16",
            "quantization_config": {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [128, 128],
                "scale_fmt": "ue8m0",
            },
        }
