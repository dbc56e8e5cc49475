"""The paged cache: latent rows and index keys, one page id for both, all layers.

    latent rows   fp8: per token C e4m3 bytes, C/128 float32 scales, R bf16 rope values
                  (656 bytes at C=512, R=64); else C + R values of the cache dtype
    index keys    fp8: per page 64 keys of D e4m3 bytes, then 64 float32 scales
                  (8,448 bytes at D=128); else D values a token

Source: the FP8 layouts of FlashMLA (latent rows) and DeepGEMM (index keys).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kernels.fp8 import dequantise_groups, quantise_groups

CacheDtype = Literal["float32", "bfloat16", "fp8"]
LATENT_GROUP = 128

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def latent_row_bytes(latent: int, rope: int, dtype: CacheDtype) -> int:
    """Returns the bytes of one token's latent row in one layer."""
    if dtype == "fp8":
        return latent + 4 * (latent // LATENT_GROUP) + 2 * rope
    return (latent + rope) * _DTYPES[dtype].itemsize


def index_key_bytes(width: int, dtype: CacheDtype) -> int:
    """Returns the bytes of one token's index key in one layer."""
    return width + 4 if dtype == "fp8" else width * _DTYPES[dtype].itemsize


def latent_rows(
    cache: Tensor,
    slots: Tensor,
    latent: int,
    rope: int,
    dtype: torch.dtype,
    *,
    complete: bool = False,
) -> Tensor:
    """Returns the cached rows [..., C + R] at slots [...] in `dtype`; -1 reads zeros.

    cache [S, row] bytes of fp8 rows, or values [S, C + R]. Zeros, because a masked row still meets
    a weight of 0, and 0 * NaN is NaN: whatever another sequence left in a slot must not reach this
    one. complete: no slot is -1.
    Raises ValueError when the cache's rows have not the width of C latents and R rope values.
    """
    fp8 = cache.dtype == torch.uint8
    width = latent_row_bytes(latent, rope, "fp8") if fp8 else latent + rope
    if cache.shape[-1] != width:
        kind = "bytes" if fp8 else "values"
        raise ValueError(
            f"cache rows have {cache.shape[-1]} {kind}; "
            f"{latent} latents and {rope} rope values take {width}"
        )
    flat = slots.flatten()
    if complete:
        rows = cache.index_select(0, flat)
    else:
        rows = cache.index_select(0, flat.clamp_min(0)).masked_fill_((flat < 0)[:, None], 0)
    if fp8:
        scale_end = latent + 4 * (latent // LATENT_GROUP)
        values = rows[:, :latent].view(torch.float8_e4m3fn)
        scales = rows[:, latent:scale_end].contiguous().view(torch.float32)
        ropes = rows[:, scale_end:].contiguous().view(torch.bfloat16)
        rows = torch.cat((dequantise_groups(values, scales, dtype), ropes.to(dtype)), dim=1)
    return rows.to(dtype).view(*slots.shape, latent + rope)


class LatentCache:
    """Latent rows of every layer, addressed by slot.

    Raises ValueError when fp8 is asked for a latent width that is no multiple of 128.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        *,
        latent: int,
        rope: int,
        dtype: CacheDtype,
        compute_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        if dtype == "fp8" and latent % LATENT_GROUP:
            raise ValueError(f"kv_lora_rank is {latent}; an fp8 cache needs a multiple of 128")
        self.latent, self.rope, self.compute_dtype = latent, rope, compute_dtype
        self.fp8 = dtype == "fp8"
        width = latent_row_bytes(latent, rope, dtype) if self.fp8 else latent + rope
        kind = torch.uint8 if self.fp8 else _DTYPES[dtype]
        self.rows = torch.zeros(layers, slots, width, dtype=kind, device=device)
        self._layers = self.rows.unbind(0)

    def write(self, layer: int, slots: Tensor, latents: Tensor, ropes: Tensor) -> None:
        """Stores latents [T, C] and rotated rope keys [T, R] at slots [T] int64, all >= 0."""
        if self.fp8:
            values, scales = quantise_groups(latents, LATENT_GROUP)
            row = torch.cat(
                (
                    values.view(torch.uint8),
                    scales.contiguous().view(torch.uint8),
                    ropes.bfloat16().contiguous().view(torch.uint8),
                ),
                dim=1,
            )
        else:
            row = torch.cat((latents, ropes), dim=1).to(self.rows.dtype)
        self._layers[layer].index_copy_(0, slots, row)

    def read(self, layer: int, slots: Tensor, *, complete: bool = False) -> Tensor:
        """Returns `latent_rows` of a layer in the compute dtype."""
        return latent_rows(
            self._layers[layer],
            slots,
            self.latent,
            self.rope,
            self.compute_dtype,
            complete=complete,
        )

    def copy_pages(self, source: Tensor, target: Tensor, page_tokens: int) -> None:
        paged = self.rows.view(self.rows.shape[0], -1, page_tokens, self.rows.shape[2])
        paged[:, target] = paged[:, source]


class IndexCache:
    """Index keys of every layer, addressed by slot; fp8 pages keep keys and scales apart."""

    def __init__(
        self,
        layers: int,
        pages: int,
        *,
        page_tokens: int,
        width: int,
        dtype: CacheDtype,
        compute_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.width, self.page_tokens, self.compute_dtype = width, page_tokens, compute_dtype
        self.fp8 = dtype == "fp8"
        row = index_key_bytes(width, dtype) if self.fp8 else width
        kind = torch.uint8 if self.fp8 else _DTYPES[dtype]
        self.pages = torch.zeros(layers, pages, page_tokens * row, dtype=kind, device=device)
        self._layers = self.pages.unbind(0)

    def _planes(self, layer: int) -> tuple[Tensor, Tensor]:
        """The two parts of a layer's fp8 pages: keys [P, 64, D] and scales [P, 64, 4], as bytes."""
        pages, keys = self._layers[layer], self.page_tokens * self.width
        return (
            pages[:, :keys].unflatten(1, (self.page_tokens, self.width)),
            pages[:, keys:].unflatten(1, (self.page_tokens, 4)),
        )

    def write(self, layer: int, slots: Tensor, keys: Tensor) -> None:
        """Stores index keys [T, D] at slots [T] int64, all >= 0."""
        if self.fp8:
            page, offset = slots // self.page_tokens, slots % self.page_tokens
            values, scales = quantise_groups(keys, self.width)
            key_plane, scale_plane = self._planes(layer)
            key_plane[page, offset] = values.view(torch.uint8)
            scale_plane[page, offset] = scales.contiguous().view(torch.uint8)
        else:
            plane = self._layers[layer].view(-1, self.width)
            plane.index_copy_(0, slots, keys.to(plane.dtype))

    def read_pages(self, layer: int, pages: Tensor) -> Tensor:
        """Returns the keys [..., n * page_tokens, D] of pages [..., n] in the compute dtype."""
        flat = pages.clamp_min(0).flatten()
        if self.fp8:
            key_plane, scale_plane = self._planes(layer)
            values = key_plane[flat].view(torch.float8_e4m3fn)
            keys = dequantise_groups(
                values, scale_plane[flat].view(torch.float32), self.compute_dtype
            )
        else:
            keys = self._layers[layer].index_select(0, flat).to(self.compute_dtype)
        return keys.view(*pages.shape[:-1], -1, self.width)

    def copy_pages(self, source: Tensor, target: Tensor) -> None:
        self.pages[:, target] = self.pages[:, source]
