"""The random "mid" checkpoint that speed is compared on: real MLA widths, 16 M parameters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from engine.hub import EMBEDDED_MODEL
from engine.model_config import ModelConfig
from engine.tensors import expected_tensors

MID_CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "torch_dtype": "float32",
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 0,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 96,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "index_n_heads": 32,
    "index_head_dim": 128,
    "index_topk": 64,
    "hidden_act": "silu",
    "intermediate_size": 512,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "moe_intermediate_size": 128,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "rope_theta": 10000.0,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
"""`config.json` of the mid checkpoint."""


def write_checkpoint(folder: Path, config: dict[str, Any] | None = None, *, seed: int = 0) -> Path:
    """Writes a random checkpoint of `config` (the mid one) in Hugging Face layout, into `folder`.

    Matrices are normal with `initializer_range` as standard deviation, norms 1, biases 0: what
    transformers draws. The same seed gives the same bytes. The embedded checkpoint's tokenizer
    and chat template come along, so that text and chat requests work. Tokens without text of their
    own have logit 0: greedy answers have text from their first token on, and do not end early.
    """
    config = MID_CONFIG if config is None else config
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    deviation = config["initializer_range"]
    tensors = {}
    for name, spec in expected_tensors(ModelConfig.from_json(config)).items():
        if name.endswith("norm.weight"):
            tensors[name] = torch.ones(spec.shape)
        elif len(spec.shape) == 1:
            tensors[name] = torch.zeros(spec.shape)
        else:
            tensors[name] = torch.randn(spec.shape, generator=generator) * deviation
    tensors["lm_head.weight"][_without_text(config["vocab_size"])] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    generation = {"do_sample": False, "eos_token_id": config["eos_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    for file in EMBEDDED_MODEL.glob("tokenizer*.json"):
        shutil.copy(file, folder)
    if (EMBEDDED_MODEL / "encoding").is_dir():
        shutil.copytree(EMBEDDED_MODEL / "encoding", folder / "encoding", dirs_exist_ok=True)
    return folder


def _without_text(vocab_size: int) -> list[int]:
    """Ids that the embedded tokenizer has no text for: control tokens, parts of a character, and
    those past its vocabulary."""
    tokenizer = Tokenizer.from_file(str(EMBEDDED_MODEL / "tokenizer.json"))
    texts = [tokenizer.decode([token_id]) for token_id in range(vocab_size)]
    return [token_id for token_id, text in enumerate(texts) if text in ("", "\ufffd")]


@contextmanager
def model_folder(name: str) -> Iterator[Path]:
    """The folder of a model by name: `mid` (written for the time of the block), `embedded`, or a
    folder as it stands.

    Raises CheckpointError where there is no such folder or no config.json in it.
    """
    if name == "mid":
        with TemporaryDirectory(prefix="winnow-mid-") as folder:
            yield write_checkpoint(Path(folder))
    elif name == "embedded":
        yield EMBEDDED_MODEL
    else:
        ModelConfig.from_folder(Path(name))
        yield Path(name)
