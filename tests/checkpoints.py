"""Tiny random DeepSeek-V3.2 checkpoints for tests.

The tensor list is written out here from the published checkpoint, not taken from the engine's own
table, so that a wrong name or shape in the engine cannot agree with itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

BLOCK = 128
SPECIAL_TOKENS = {
    "<｜begin▁of▁sentence｜>": True,
    "<｜end▁of▁sentence｜>": True,
    "<｜User｜>": True,
    "<｜Assistant｜>": True,
    "<think>": False,
    "</think>": False,
    "｜DSML｜": False,
}
"""Text -> whether the token is flagged special; ids follow this order from 0."""


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """A `config.json` small enough to compute in milliseconds, with every feature switched on."""
    config = {
        "architectures": ["DeepseekV32ForCausalLM"],
        "model_type": "deepseek_v32",
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_shared_experts": 1,
        "n_routed_experts": 8,
        "routed_scaling_factor": 2.5,
        "kv_lora_rank": 32,
        "q_lora_rank": 48,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 24,
        "v_head_dim": 20,
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 3,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "hidden_act": "silu",
        "max_position_embeddings": 10240,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "original_max_position_embeddings": 256,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "index_n_heads": 8,
        "index_head_dim": 32,
        "index_topk": 16,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }
    return config | overrides


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the published layout, MTP copies included."""
    c = config
    hidden, vocab, heads = c["hidden_size"], c["vocab_size"], c["num_attention_heads"]
    key_width = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    mtp = c["num_hidden_layers"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for layer in range(mtp + c.get("num_nextn_predict_layers", 0)):
        here = f"model.layers.{layer}."
        attention = here + "self_attn."
        shapes |= {
            here + "input_layernorm.weight": (hidden,),
            here + "post_attention_layernorm.weight": (hidden,),
            attention + "q_a_proj.weight": (c["q_lora_rank"], hidden),
            attention + "q_a_layernorm.weight": (c["q_lora_rank"],),
            attention + "q_b_proj.weight": (heads * key_width, c["q_lora_rank"]),
            attention + "kv_a_proj_with_mqa.weight": (
                c["kv_lora_rank"] + c["qk_rope_head_dim"],
                hidden,
            ),
            attention + "kv_a_layernorm.weight": (c["kv_lora_rank"],),
            attention + "kv_b_proj.weight": (
                heads * (c["qk_nope_head_dim"] + c["v_head_dim"]),
                c["kv_lora_rank"],
            ),
            attention + "o_proj.weight": (hidden, heads * c["v_head_dim"]),
            attention + "indexer.wq_b.weight": (
                c["index_n_heads"] * c["index_head_dim"],
                c["q_lora_rank"],
            ),
            attention + "indexer.wk.weight": (c["index_head_dim"], hidden),
            attention + "indexer.k_norm.weight": (c["index_head_dim"],),
            attention + "indexer.k_norm.bias": (c["index_head_dim"],),
            attention + "indexer.weights_proj.weight": (c["index_n_heads"], hidden),
        }
        widths = {"mlp.": c["intermediate_size"]}
        if layer >= c["first_k_dense_replace"]:
            shapes[here + "mlp.gate.weight"] = (c["n_routed_experts"], hidden)
            shapes[here + "mlp.gate.e_score_correction_bias"] = (c["n_routed_experts"],)
            width = c["moe_intermediate_size"]
            widths = {f"mlp.experts.{e}.": width for e in range(c["n_routed_experts"])}
            widths["mlp.shared_experts."] = width * c["n_shared_experts"]
        for prefix, width in widths.items():
            shapes[here + prefix + "gate_proj.weight"] = (width, hidden)
            shapes[here + prefix + "up_proj.weight"] = (width, hidden)
            shapes[here + prefix + "down_proj.weight"] = (hidden, width)
        if layer >= mtp:
            shapes |= {
                here + "embed_tokens.weight": (vocab, hidden),
                here + "enorm.weight": (hidden,),
                here + "hnorm.weight": (hidden,),
                here + "eh_proj.weight": (hidden, 2 * hidden),
                here + "shared_head.norm.weight": (hidden,),
                here + "shared_head.head.weight": (vocab, hidden),
            }
    return shapes


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Float32 weights under published names, drawn so that a forgotten one shows.

    Norms lie around 1 but away from it, biases are not 0, linears keep the variance of their
    input, logits spread over about ±8 and index scores over several units.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in tensor_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            weights[name] = 1 + 0.25 * noise
        elif name.endswith("k_norm.bias"):
            weights[name] = 0.3 * noise
        elif name.endswith("e_score_correction_bias"):
            weights[name] = 0.15 * noise
        elif name.endswith("embed_tokens.weight"):
            weights[name] = noise
        elif name.endswith(("lm_head.weight", "shared_head.head.weight")):
            weights[name] = 2.5 * noise / shape[-1] ** 0.5
        else:
            weights[name] = noise / shape[-1] ** 0.5
    for name, main in (
        ("embed_tokens.weight", "model.embed_tokens.weight"),
        ("shared_head.head.weight", "lm_head.weight"),
    ):
        for copy in (n for n in weights if n.startswith("model.layers.") and n.endswith(name)):
            weights[copy] = weights[main].clone()
    return weights


def is_fp8_linear(name: str) -> bool:
    """Whether the published FP8 checkpoint stores this weight as e4m3 with block scales."""
    kept = ("mlp.gate.weight", "indexer.weights_proj.weight", "eh_proj.weight")
    linears = ("proj.weight", "proj_with_mqa.weight", "wq_b.weight", "wk.weight")
    return name.endswith(linears) and not name.endswith(kept)


def quantise_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """An e4m3 weight [out, in] and its power-of-two scales, one per 128x128 block."""
    rows, columns = weight.shape
    scale = torch.empty(-(-rows // BLOCK), -(-columns // BLOCK))
    quantised = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            block = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scale[i, j] = 2 ** (weight[block].abs().max() / 448).log2().ceil()
            quantised[block] = (weight[block] / scale[i, j]).to(torch.float8_e4m3fn)
    return quantised, scale


def write_checkpoint(
    folder: Path,
    config: dict[str, Any],
    weights: dict[str, Tensor],
    *,
    fp8: bool = False,
    shards: int = 1,
    tokenizer: bool = True,
) -> Path:
    """Writes the checkpoint into `folder` (created) in Hugging Face layout, and returns it.

    fp8 stores the linears as e4m3 with `weight_scale_inv`; more than one shard adds an index, and
    the tensors are dealt out in turn, so that a weight and its scale part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = {}
    for name, weight in weights.items():
        if fp8 and is_fp8_linear(name):
            stored[name], stored[name + "_scale_inv"] = quantise_blocks(weight)
        else:
            stored[name] = weight.contiguous()
    if fp8:
        config = config | {
            "quantization_config": {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [BLOCK, BLOCK],
                "scale_fmt": "ue8m0",
            }
        }
    (folder / "config.json").write_text(json.dumps(config))
    generation = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "eos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    if shards == 1:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:06d}.safetensors"
            part = {n: t for i, (n, t) in enumerate(stored.items()) if i % shards == shard}
            save_file(part, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if tokenizer:
        write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer: DeepSeek's control tokens first, then the 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    for text, special in SPECIAL_TOKENS.items():
        token = AddedToken(text, special=special, normalized=False)
        if special:
            tokenizer.add_special_tokens([token])
        else:
            tokenizer.add_tokens([token])
    tokenizer.save(str(folder / "tokenizer.json"))
    texts = list(SPECIAL_TOKENS)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": texts[0],
        "eos_token": texts[1],
        "add_bos_token": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False))
