"""The cache tensors behind the scheduler's page ids, and how many pages fit."""

from __future__ import annotations

import msgspec
import torch

from engine.config import PAGE_TOKENS
from engine.model_config import ModelConfig
from kernels.cache import CacheDtype, IndexCache, LatentCache, index_key_bytes, latent_row_bytes


class CacheLayout(msgspec.Struct, frozen=True):
    """Dtypes of the two halves of a page."""

    latent: CacheDtype
    index: CacheDtype

    def page_bytes(self, model: ModelConfig) -> int:
        """Bytes of one page: 64 latent rows and 64 index keys in every main layer."""
        row = latent_row_bytes(model.kv_lora_rank, model.qk_rope_head_dim, self.latent)
        key = index_key_bytes(model.index_head_dim, self.index)
        return model.num_hidden_layers * PAGE_TOKENS * (row + key)


class PagedCache:
    """Latent rows and index keys of all main layers, `pages` pages of 64 tokens.

    Both halves share the page id: they are written, copied and dropped together.
    """

    def __init__(
        self,
        model: ModelConfig,
        layout: CacheLayout,
        pages: int,
        *,
        compute_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layout, self.total_pages = layout, pages
        layers = model.num_hidden_layers
        self.latents = LatentCache(
            layers,
            pages * PAGE_TOKENS,
            latent=model.kv_lora_rank,
            rope=model.qk_rope_head_dim,
            dtype=layout.latent,
            compute_dtype=compute_dtype,
            device=device,
        )
        self.index_keys = IndexCache(
            layers,
            pages,
            page_tokens=PAGE_TOKENS,
            width=model.index_head_dim,
            dtype=layout.index,
            compute_dtype=compute_dtype,
            device=device,
        )

    def copy_pages(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copies whole pages [n] -> [n], all layers, both halves."""
        self.latents.copy_pages(source, target, PAGE_TOKENS)
        self.index_keys.copy_pages(source, target)
