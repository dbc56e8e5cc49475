"""Rotary position embedding in its two layouts.

MLA rotates neighbouring pairs (x[2i], x[2i+1]); the lightning indexer rotates (x[i], x[i + R/2]).
Mixing them up is invisible while the context fits into top-k, and wrecks selection beyond it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(inv_freq: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Returns cos and sin, each [T, R/2] float32, of positions [T] times inv_freq [R/2].

    Angles are formed in float64, so they are exact to float32 at any position a page can hold.
    """
    angles = positions.double()[:, None] * inv_freq.double()
    return angles.cos().float(), angles.sin().float()


def _broadcast(x: Tensor, table: Tensor) -> Tensor:
    """[T, R/2] -> [T, 1, ..., R/2] for x [T, ..., R]."""
    return table.view(table.shape[0], *(1,) * (x.dim() - 2), table.shape[1])


def rope_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns x with each pair (x[2i], x[2i+1]) rotated by its angle, written back in place order.

    x [T, ..., R]; cos, sin [T, R/2]; computed in at least float32, returned in x's dtype.
    """
    cos, sin = _broadcast(x, cos), _broadcast(x, sin)
    wide = x if x.dtype == torch.float64 else x.float()
    even, odd = wide[..., 0::2], wide[..., 1::2]
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).to(x.dtype)


def rope_half_split(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns x with each pair (x[i], x[i + R/2]) rotated by its angle.

    x [T, ..., R]; cos, sin [T, R/2]; computed in at least float32, returned in x's dtype.
    """
    cos, sin = _broadcast(x, cos), _broadcast(x, sin)
    wide = x if x.dtype == torch.float64 else x.float()
    first, second = wide.chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
    return rotated.to(x.dtype)


def rope_reference(x: Tensor, position: int, inv_freq: Tensor, *, half_split: bool) -> Tensor:
    """One vector x [R] at one position, pair by pair."""
    out = x.clone()
    half = x.shape[0] // 2
    for i in range(half):
        a, b = (i, i + half) if half_split else (2 * i, 2 * i + 1)
        angle = position * inv_freq[i].to(x.dtype)
        out[a] = x[a] * torch.cos(angle) - x[b] * torch.sin(angle)
        out[b] = x[a] * torch.sin(angle) + x[b] * torch.cos(angle)
    return out
