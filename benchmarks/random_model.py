"""A model of random weights made on the device: few layers of full width, or the embedded shape."""

from __future__ import annotations

from typing import Literal

import msgspec
import torch
from torch import Tensor

from engine.cache import CacheLayout, PagedCache
from engine.config import PAGE_TOKENS, ConfigError
from engine.hub import EMBEDDED_MODEL
from engine.model import DeepseekV32, Network
from engine.model_config import Fp8, ModelConfig, Yarn
from engine.tensors import SCALE_SUFFIX, expected_tensors, held_bytes, scale_shape

Config = Literal["v3.2", "tiny"]
FULL = ModelConfig(
    vocab_size=129_280,
    hidden_size=7168,
    num_hidden_layers=61,
    max_position_embeddings=163_840,
    num_attention_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    index_n_heads=64,
    index_head_dim=128,
    index_topk=2048,
    first_k_dense_replace=3,
    intermediate_size=18_432,
    moe_intermediate_size=2048,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=8,
    n_group=8,
    topk_group=4,
    routed_scaling_factor=2.5,
    rope_scaling=Yarn(
        factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0
    ),
)
"""DeepSeek-V3.2. Source: its config.json."""


def model_config(config: Config, layers: int, device: torch.device) -> ModelConfig:
    """Returns the shape; raises ConfigError where it cannot run here."""
    if layers < 1:
        raise ConfigError(f"--layers is {layers}; it must be at least 1")
    if config == "tiny":
        model = ModelConfig.from_folder(EMBEDDED_MODEL)
    else:
        model = FULL
        if device.type != "cuda":
            raise ConfigError(
                "layers of full width take a Hopper GPU, and torch finds no CUDA device; "
                "--config tiny runs here"
            )
    dense = min(model.first_k_dense_replace, max(0, layers - 1))
    model = msgspec.structs.replace(
        model, num_hidden_layers=layers, num_nextn_predict_layers=0, first_k_dense_replace=dense
    )
    if device.type == "cuda":
        stored = msgspec.structs.replace(model, quantization=Fp8())
        needed = held_bytes(stored, compute_bytes=2, keep_fp8=True)
        total = torch.cuda.mem_get_info(device)[1]
        if needed > 0.8 * total:
            raise ConfigError(
                f"{layers} layers take {needed / 2**30:.1f} GiB; "
                f"{torch.cuda.get_device_name(device)} has {total / 2**30:.1f} GiB, and pages and "
                "steps need a fifth of it; take fewer --layers"
            )
    return model


def check_memory(model: ModelConfig, layout: CacheLayout, pages: int, device: torch.device) -> None:
    """Raises ConfigError, with the numbers, where weights and pages leave steps no room."""
    if device.type != "cuda":
        return
    stored = msgspec.structs.replace(model, quantization=Fp8())
    weight_bytes = held_bytes(stored, compute_bytes=2, keep_fp8=True)
    page_bytes = pages * layout.page_bytes(model)
    total = torch.cuda.mem_get_info(device)[1]
    if weight_bytes + page_bytes > 0.9 * total:
        raise ConfigError(
            f"{model.num_hidden_layers} layers take {weight_bytes / 2**30:.1f} GiB and {pages:,} "
            f"pages of {PAGE_TOKENS} tokens {page_bytes / 2**30:.1f} GiB; "
            f"{torch.cuda.get_device_name(device)} has {total / 2**30:.1f} GiB, and steps need a "
            "tenth of it; take fewer --layers, --batch or --context"
        )


def random_weights(model: ModelConfig, device: torch.device, *, fp8: bool) -> dict[str, Tensor]:
    """Returns weights under their published names, made on the device.

    fp8: linears as e4m3 codes with the scale that gives results of their inputs' size; else
    float32. Norms are 1, biases 0.
    """
    weights: dict[str, Tensor] = {}
    for name, spec in expected_tensors(model).items():
        deviation = spec.shape[-1] ** -0.5
        if name.endswith("norm.weight"):
            weights[name] = torch.ones(spec.shape, device=device)
        elif len(spec.shape) == 1:
            weights[name] = torch.zeros(spec.shape, device=device)
        elif spec.role == "linear" and fp8:
            # Exponents to 2^3 with both signs: their root mean square is about 5.
            codes = torch.randint(0, 0x58, spec.shape, dtype=torch.uint8, device=device)
            signs = torch.randint(0, 2, spec.shape, dtype=torch.uint8, device=device)
            weights[name] = codes.bitwise_or_(signs << 7).view(torch.float8_e4m3fn)
            scale = 2.0 ** round(torch.log2(torch.tensor(deviation / 5)).item())
            shape = scale_shape(spec.shape)
            weights[name + SCALE_SUFFIX] = torch.full(shape, scale, device=device)
        else:
            dtype = torch.bfloat16 if fp8 and spec.role == "compute" else torch.float32
            values = torch.randn(spec.shape, device=device, dtype=dtype)
            # Of published heads, bfloat16 holds the values exactly.
            weights[name] = (values * deviation).bfloat16().to(dtype)
    return weights


def random_network(
    model: ModelConfig, device: torch.device, dtype: torch.dtype, *, kernels: bool
) -> Network:
    """Returns the model; kernels: that of the kernels for Hopper."""
    torch.manual_seed(0)
    weights = random_weights(model, device, fp8=kernels)
    if kernels:
        from engine.hopper.model import HopperDeepseekV32  # needs triton

        return HopperDeepseekV32(model, weights)
    return DeepseekV32(model, {name: w.to(dtype) for name, w in weights.items()})


def fill_cache(cache: PagedCache) -> None:
    """Random latents and index keys everywhere, as values or as FP8 codes with scales of 2^-6."""
    if not cache.latents.fp8:
        cache.latents.rows.normal_()
        cache.index_keys.pages.normal_()
        return
    width, tokens = cache.index_keys.width, PAGE_TOKENS
    latent = cache.latents.latent
    scale_end = latent + 4 * (latent // 128)
    for rows, pages in zip(cache.latents.rows, cache.index_keys.pages, strict=True):
        rows.copy_(torch.randint_like(rows, 0, 0x58))
        rows[:, latent:scale_end] = _scale_bytes(latent // 128, rows.device)
        ropes = torch.randn(1, rows.shape[1] - scale_end, device=rows.device)[:, ::2].bfloat16()
        rows[:, scale_end:] = ropes.contiguous().view(torch.uint8)
        pages.copy_(torch.randint_like(pages, 0, 0x58))
        pages[:, tokens * width :] = _scale_bytes(tokens, pages.device)


def _scale_bytes(count: int, device: torch.device) -> Tensor:
    return torch.full((count,), 2.0**-6, device=device).view(torch.uint8)
