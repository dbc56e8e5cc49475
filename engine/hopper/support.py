"""Which models, settings and devices the kernels serve. Imports no triton: it may not be there."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import torch

from engine.cache import CacheLayout
from engine.model_config import ModelConfig

CAPABILITY = (9, 0)
"""Of the GPUs the kernels are compiled for: H100, H200, H800."""
HEADS = (16, 32, 64, 128)
INDEX_HEADS = (8, 16, 32, 64)
INDEX_WIDTHS = (32, 64, 128)
MOST_TOP_K = 4096
WIDEST_NORM = 16_384
GROUP = 128
LONGEST_CONTEXT = 2**21 - 1


def obstacle(
    model: ModelConfig, layout: CacheLayout, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Returns why the kernels cannot run this, with the value and what is allowed; None: they can.

    Launchers check all of this again, call by call; here it is known before a weight is read.
    """
    if device.type != "cuda":
        return f"the device is {device.type}; they need cuda"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability != CAPABILITY:
        found = ".".join(map(str, capability))
        name = torch.cuda.get_device_name(device)
        return f"{name} has compute capability {found}; they are for 9.0 (H100, H200, H800)"
    return unsupported_sizes(model, layout, dtype)


def unsupported_sizes(model: ModelConfig, layout: CacheLayout, dtype: torch.dtype) -> str | None:
    """Returns which size or dtype the kernels do not take; None: all are supported."""
    if dtype != torch.bfloat16:
        return f"--dtype is {str(dtype).removeprefix('torch.')}; they take bfloat16"
    if layout.index != "fp8":
        return f"--index-dtype is {layout.index}; they take fp8"
    if layout.latent == "float32":
        return "--kv-cache-dtype is float32; they take fp8 and bfloat16"
    return next(_wrong_sizes(model), None)


def _wrong_sizes(model: ModelConfig) -> Iterator[str]:
    choices = {
        "num_attention_heads": HEADS,
        "index_n_heads": INDEX_HEADS,
        "index_head_dim": INDEX_WIDTHS,
    }
    for name, allowed in choices.items():
        value = getattr(model, name)
        if value not in allowed:
            yield f"{name} is {value}; they take {', '.join(map(str, allowed))}"
    for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank"):
        value = getattr(model, name)
        if value < 16 or value & (value - 1):
            yield f"{name} is {value}; they take powers of two from 16"
    if model.indexer_rope_interleave:
        yield "indexer_rope_interleave is true; they rotate half-split pairs"
    inputs = {
        "hidden_size": model.hidden_size,
        "q_lora_rank": model.q_lora_rank,
        "kv_lora_rank": model.kv_lora_rank,
        "num_attention_heads * v_head_dim": model.num_attention_heads * model.v_head_dim,
        "intermediate_size": model.intermediate_size,
        "moe_intermediate_size": model.moe_intermediate_size,
    }
    for name, value in inputs.items():
        if value % GROUP:
            yield f"{name} is {value}; FP8 products take multiples of {GROUP}"
    for name in ("hidden_size", "q_lora_rank"):
        if (value := getattr(model, name)) > WIDEST_NORM:
            yield f"{name} is {value}; they norm rows of at most {WIDEST_NORM}"
    if model.index_topk > MOST_TOP_K:
        yield f"index_topk is {model.index_topk}; they select at most {MOST_TOP_K}"
    if model.max_position_embeddings > LONGEST_CONTEXT:
        yield (
            f"max_position_embeddings is {model.max_position_embeddings}; "
            f"they select from at most {LONGEST_CONTEXT} positions"
        )
