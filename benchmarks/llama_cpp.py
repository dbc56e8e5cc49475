"""llama.cpp through llama-cpp-python, as a peer: its file of a checkpoint, and its greedy loop.

Optional: `pip install llama-cpp-python gguf`. Its architecture `deepseek32` is the sparse one.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import load_file

from benchmarks.peers import EachStep
from engine.model_config import ModelConfig, Yarn

ARCHITECTURE = "deepseek32"
SIGMOID = 2
"""llama.cpp's number of the router's gating function."""
FLOAT32 = 0
"""llama.cpp's number of the file and cache type."""

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.indexer.wq_b": "indexer.attn_q_b",
    "self_attn.indexer.wk": "indexer.attn_k",
    "self_attn.indexer.k_norm": "indexer.k_norm",
    "self_attn.indexer.weights_proj": "indexer.proj",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
"""A layer's modules in Hugging Face layout, and their names in a GGUF file."""


def write_gguf(folder: Path, file: Path) -> Path:
    """Writes the float32 checkpoint in `folder` without vocabulary, for token ids alone."""
    config = ModelConfig.from_folder(folder)
    tensors = {
        name: value.astype(np.float32)
        for name, value in load_file(folder / "model.safetensors").items()
    }
    writer = gguf.GGUFWriter(file, ARCHITECTURE)
    for key, number in _numbers(config).items():
        if isinstance(number, float):
            writer.add_float32(f"{ARCHITECTURE}.{key}", number)
        else:
            writer.add_uint32(f"{ARCHITECTURE}.{key}", number)
    writer.add_bool(f"{ARCHITECTURE}.expert_weights_norm", True)
    if config.rope_scaling:
        writer.add_string(f"{ARCHITECTURE}.rope.scaling.type", "yarn")
    writer.add_uint32("general.file_type", FLOAT32)
    writer.add_string("tokenizer.ggml.model", "none")
    for name, value in _tensors(config, tensors).items():
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _numbers(config: ModelConfig) -> dict[str, int | float]:
    rope, latent = config.qk_rope_head_dim, config.kv_lora_rank
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "vocab_size": config.vocab_size,
        "feed_forward_length": config.intermediate_size,
        "leading_dense_block_count": config.first_k_dense_replace,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": 1,  # one latent for all heads
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.q_lora_rank": config.q_lora_rank,
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + rope,
        "attention.value_length": latent,
        "attention.key_length_mla": config.qk_nope_head_dim + rope,
        "attention.value_length_mla": config.v_head_dim,
        "attention.indexer.head_count": config.index_n_heads,
        "attention.indexer.key_length": config.index_head_dim,
        "attention.indexer.top_k": config.index_topk,
        "rope.dimension_count": rope,
        "rope.freq_base": float(config.rope_theta),
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_group_count": config.n_group,
        "expert_group_used_count": config.topk_group,
        "expert_shared_count": config.n_shared_experts,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_gating_func": SIGMOID,
        **(_yarn(config.rope_scaling) if config.rope_scaling else {}),
    }


def _yarn(yarn: Yarn) -> dict[str, int | float]:
    return {
        "rope.scaling.factor": float(yarn.factor),
        "rope.scaling.original_context_length": yarn.original_max_position_embeddings,
        "rope.scaling.yarn_log_multiplier": 0.1 * yarn.mscale_all_dim,
        "rope.scaling.yarn_beta_fast": float(yarn.beta_fast),
        "rope.scaling.yarn_beta_slow": float(yarn.beta_slow),
    }


def _tensors(config: ModelConfig, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The checkpoint's tensors under GGUF names: experts stacked, W_kv_b taken apart."""
    found = {
        "token_embd.weight": tensors["model.embed_tokens.weight"],
        "output_norm.weight": tensors["model.norm.weight"],
        "output.weight": tensors["lm_head.weight"],
    }
    for layer in range(config.num_hidden_layers):
        source, target = f"model.layers.{layer}", f"blk.{layer}"
        for module, name in NAMES.items():
            for kind in ("weight", "bias"):
                if f"{source}.{module}.{kind}" in tensors:
                    found[f"{target}.{name}.{kind}"] = tensors[f"{source}.{module}.{kind}"]
        whole = tensors[f"{source}.self_attn.kv_b_proj.weight"]
        heads = whole.reshape(config.num_attention_heads, -1, whole.shape[-1])
        found[f"{target}.attn_k_b.weight"] = heads[:, : config.qk_nope_head_dim].transpose(0, 2, 1)
        found[f"{target}.attn_v_b.weight"] = heads[:, config.qk_nope_head_dim :]
        if layer < config.first_k_dense_replace:
            continue
        found[f"{target}.exp_probs_b.bias"] = tensors[f"{source}.mlp.gate.e_score_correction_bias"]
        for part in ("gate", "up", "down"):
            found[f"{target}.ffn_{part}_exps.weight"] = np.stack(
                [
                    tensors[f"{source}.mlp.experts.{expert}.{part}_proj.weight"]
                    for expert in range(config.n_routed_experts)
                ]
            )
    return found


class LlamaCpp:
    """llama.cpp in float32 with a float32 cache, one sequence of its batch for each prompt.

    Without its flash attention, which rounds to half precision on a CPU: greedy tokens then differ.
    """

    who = "llama.cpp"

    def __init__(self, folder: Path, *, sequences: int, tokens: int, threads: int) -> None:
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)  # else: every tensor, a line
        llama_cpp.llama_backend_init()
        with TemporaryDirectory() as written:
            file = write_gguf(folder, Path(written) / "model.gguf")
            parameters = llama_cpp.llama_model_default_params()
            parameters.use_mmap = False
            self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
        if not self._model:
            raise RuntimeError("llama.cpp does not load the checkpoint")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = sequences * tokens, sequences
        settings.n_batch = settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = FLOAT32
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError("llama.cpp does not make a context")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)

    def generate(self, prompts: list[list[int]], tokens: int, each_step: EachStep) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        latest = [0] * len(prompts)
        entries = [
            (token, place, sequence, place + 1 == len(ids))
            for sequence, ids in enumerate(prompts)
            for place, token in enumerate(ids)
        ]
        for begin in range(0, len(entries), 512):
            self._decode(entries[begin : begin + 512], latest)
        each_step(list(latest))
        for step in range(tokens - 1):
            place = len(prompts[0]) + step
            self._decode([(t, place, s, True) for s, t in enumerate(latest)], latest)
            each_step(list(latest))

    def _decode(self, entries: list[tuple[int, int, int, bool]], latest: list[int]) -> None:
        """Computes entries (token, position, sequence, wanted); the wanted ones set `latest`."""
        batch: Any = self._batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama.cpp's decode ended with status {status}")
        for i, (_, _, sequence, wanted) in enumerate(entries):
            if wanted:
                row = llama_cpp.llama_get_logits_ith(self._context, i)
                address = ctypes.cast(row, ctypes.POINTER(ctypes.c_float))
                latest[sequence] = int(
                    np.ctypeslib.as_array(address, shape=(self._vocab_size,)).argmax()
                )
