"""Rotary position embedding in its two layouts.

MLA rotates neighbouring pairs (x[2i], x[2i+1]); the lightning indexer rotates (x[i], x[i + R/2]).
Mixing them up is invisible while the context fits into top-k, and wrecks selection beyond it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(inv_freq: Tensor, positions: Tensor) -> Tensor:
    """Returns e^(i angle), [T, R/2] complex64, of positions [T] times inv_freq [R/2].

    Angles are formed in float64, so they are exact to float32 at any position a page can hold.
    """
    angles = positions.double()[:, None] * inv_freq.double()
    return torch.complex(angles.cos().float(), angles.sin().float())


def _broadcast(x: Tensor, table: Tensor) -> Tensor:
    """[T, R/2] -> [T, 1, ..., R/2] for x [T, ..., R]."""
    return table.view(table.shape[0], *(1,) * (x.dim() - 2), table.shape[1])


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def rope_interleaved(x: Tensor, table: Tensor) -> Tensor:
    """Returns x with each pair (x[2i], x[2i+1]) rotated by its angle, written back in place order.

    x [T, ..., R]; table [T, R/2]; computed in at least float32, returned in x's dtype.
    """
    pairs = _wide(x).unflatten(-1, (-1, 2))
    # Complex numbers need their two halves adjacent, and an even distance from one to the next.
    if any(step % 2 for step in (pairs.storage_offset(), *pairs.stride()[:-1])):
        pairs = pairs.contiguous()
    turned = torch.view_as_complex(pairs) * _broadcast(x, table)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def rope_half_split(x: Tensor, table: Tensor) -> Tensor:
    """Returns x with each pair (x[i], x[i + R/2]) rotated by its angle.

    x [T, ..., R]; table [T, R/2]; computed in at least float32, returned in x's dtype.
    """
    turned = torch.complex(*_wide(x).chunk(2, dim=-1)) * _broadcast(x, table)
    return torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype)


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
