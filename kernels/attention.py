"""Attention over latents: absorbed over chosen slots (MQA form), or expanded per head (MHA form).

    a_s = scale * (q_nope . k_nope_s + q_rope . k_rope_s),   p = softmax over the chosen s

Source: DeepSeek-V3.2 report, eq. 2; DeepSeek-V2 report, eq. 37-47 for the absorbed form.
A row without any valid key gives 0, never NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORKSPACE_BYTES = 64 * 2**20
"""Scores held at once on a device with memory to fill."""
CPU_BLOCK_BYTES = 2 * 2**20
"""The same on a CPU, where they should stay in a core's cache."""


def block_bytes(device: torch.device) -> int:
    """Returns how much of an intermediate result to hold at once on `device`."""
    return CPU_BLOCK_BYTES if device.type == "cpu" else WORKSPACE_BYTES


def _wide(x: Tensor) -> Tensor:
    """x in at least float32: dot products of bfloat16 rows would be rounded before the softmax."""
    return x if x.dtype == torch.float64 else x.float()


def _masked_softmax(scores: Tensor, valid: Tensor) -> Tensor:
    """softmax over the last dimension, 0 where not valid, 0 for a row without any."""
    outside = ~valid
    # A row without any valid key is NaN after the softmax, and all of it is outside.
    return scores.masked_fill_(outside, -torch.inf).softmax(-1).masked_fill_(outside, 0.0)


def mqa_over_latents(
    q: Tensor,
    rows: Tensor,
    valid: Tensor | None,
    scale: float,
    latent: int,
    *,
    batch_invariant: bool = False,
) -> Tensor:
    """Returns per-head averages of the latents [T, H, C] in q's dtype.

    q [T, H, C + R]: absorbed query, then rotated rope part; rows [T, K, C + R]: the latent rows
    each query attends to, shared by its heads; valid [T, K] bool, None when all are; latent = C.
    batch_invariant: a query's result depends on that query alone, to the last bit.
    """
    if batch_invariant and q.shape[0] == 1:
        # One product of a batch is divided among threads, more are handed out whole.
        q, rows = q.expand(2, -1, -1), rows.expand(2, -1, -1)
        valid = None if valid is None else valid.expand(2, -1)
        return mqa_over_latents(q, rows, valid, scale, latent)[:1]
    scores = (_wide(q) @ _wide(rows).transpose(1, 2)).mul_(scale)
    p = scores.softmax(-1) if valid is None else _masked_softmax(scores, valid[:, None, :])
    return p.to(q.dtype) @ rows[..., :latent]


def mha(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    scale: float,
    selected: Tensor | None = None,
    *,
    workspace_bytes: int | None = None,
) -> Tensor:
    """Returns attention outputs [T, H, V] in q's dtype.

    q [T, H, N + R]; k [L, H, N + R]; v [L, H, V]; visible [T] int64: query t sees positions below
    visible[t]; selected [T, L] bool masks further (None: dense causal). Queries are taken as many
    at a time as have scores of `workspace_bytes`.
    """
    tokens, heads, _ = q.shape
    length, on_cpu = k.shape[0], q.device.type == "cpu"
    keys, values = _wide(k).permute(1, 2, 0), v.transpose(0, 1)  # [H, N + R, L], [H, L, V]
    positions = torch.arange(length, device=q.device)
    out = torch.empty(tokens, heads, v.shape[-1], dtype=q.dtype, device=q.device)
    budget_bytes = block_bytes(q.device) if workspace_bytes is None else workspace_bytes
    step = max(1, budget_bytes // (heads * length * 4))
    for begin in range(0, tokens, step):
        rows = slice(begin, begin + step)
        # Later keys than the block's last query sees cost as much as the others: leave them out.
        end = int(visible[rows].max()) if on_cpu else length
        valid = positions[:end] < visible[rows, None]
        if selected is not None:
            valid &= selected[rows, :end]
        scores = (_wide(q[rows]).transpose(0, 1) @ keys[..., :end]).mul_(scale)  # [H, t, end]
        p = _masked_softmax(scores, valid).to(q.dtype)
        out[rows] = (p @ values[:, :end]).transpose(0, 1)
    return out


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, chosen: list[list[int]], scale: float
) -> Tensor:
    """One query and head at a time over its chosen positions; k [L, H, N + R], v [L, H, V]."""
    out = torch.zeros(q.shape[0], q.shape[1], v.shape[-1], dtype=q.dtype)
    for t, positions in enumerate(chosen):
        for h in range(q.shape[1]):
            if positions:
                scores = torch.stack([torch.dot(q[t, h], k[s, h]) for s in positions]) * scale
                out[t, h] = torch.softmax(scores, 0) @ v[positions, h]
    return out
