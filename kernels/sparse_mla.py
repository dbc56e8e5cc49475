"""Sparse MLA: absorbed attention of query rows over the latent rows that the indexer chose.

    a_s = scale * (q_latent . c_s + q_rope . r_s),   out = sum over the chosen s of softmax(a)_s c_s

Decode and prefill are the same op: a prefill has more rows. Causality lies in the slot lists alone.

Source: DeepSeek-V3.2 report, eq. 2; DeepSeek-V2 report, eq. 37-47 for the absorbed form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.attention import mqa_over_latents
from kernels.cache import latent_rows


def sparse_mla(
    q: Tensor, cache: Tensor, slots: Tensor, scale: float, *, latent: int
) -> tuple[Tensor, Tensor]:
    """Returns per-head averages of the latents [T, H, C] in q's dtype and the scores' natural
    log-sum-exp [T, H] float32.

    q [T, H, C + R]: absorbed query, then rotated rope part; cache: latent rows of one layer by
    slot, bytes [S, C + 4 C / 128 + 2 R] uint8 (`kernels.cache`, fp8) or values [S, C + R];
    slots [T, K] int32 or int64, -1 anywhere is no entry; latent = C. A row without any entry gives
    0, and -inf as its log-sum-exp. Whatever stands in rows that no entry names has no effect.
    Raises ValueError when the shapes do not fit together.
    """
    if q.shape[0] != slots.shape[0]:
        raise ValueError(f"slots has {slots.shape[0]} rows; q has {q.shape[0]}")
    valid = slots >= 0
    rows = latent_rows(cache, slots, latent, q.shape[-1] - latent, q.dtype)
    out = mqa_over_latents(q, rows, valid, scale, latent)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ rows.to(wide).transpose(1, 2)) * scale
    scores.masked_fill_(~valid[:, None, :], -torch.inf)
    return out, scores.logsumexp(-1).float()


def sparse_mla_reference(
    q: Tensor, rows: Tensor, slots: list[list[int]], scale: float, *, latent: int
) -> tuple[Tensor, Tensor]:
    """One query row and head at a time; rows [S, C + R] by slot, in q's dtype."""
    out = torch.zeros(*q.shape[:2], latent, dtype=q.dtype)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=q.dtype)
    for t, entries in enumerate(slots):
        chosen = [slot for slot in entries if slot >= 0]
        for h in range(q.shape[1]):
            if chosen:
                scores = [scale * float(torch.dot(q[t, h], rows[slot])) for slot in chosen]
                largest = max(scores)
                weights = [math.exp(score - largest) for score in scores]
                total = sum(weights)
                for slot, weight in zip(chosen, weights, strict=True):
                    out[t, h] += weight / total * rows[slot, :latent]
                lse[t, h] = largest + math.log(total)
    return out, lse
