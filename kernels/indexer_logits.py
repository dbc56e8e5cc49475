"""The lightning indexer's scores.

    I[t, s] = sum_j w[t, j] * relu(q[t, j] . k[s])        -inf where s >= visible[t]

Source: DeepSeek-V3.2 report, eq. 1. The ReLU acts on the raw dot product, before the head weight;
weights may be negative, hence scores may be, hence the mask is -inf and never 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def indexer_logits(
    q: Tensor, k: Tensor, weights: Tensor, visible: Tensor, *, workspace_bytes: int = 64 * 2**20
) -> Tensor:
    """Returns index scores [T, L] float32.

    q [T, J, D], k [L, D] (one context for all queries) or [T, L, D] (one each), any float dtype;
    weights [T, J] float32 with every constant folded in (J^-1/2, D^-1/2);
    visible [T] int64: query t may see positions below visible[t].
    Dot products and the epilogue are float32. Per-head scores are held for as many queries at a
    time as fit `workspace_bytes`.
    """
    tokens, heads, _ = q.shape
    length = k.shape[-2]
    k = k.float()
    out = torch.empty(tokens, length, dtype=torch.float32, device=q.device)
    step = max(1, workspace_bytes // max(1, heads * length * 4))
    for begin in range(0, tokens, step):
        rows = slice(begin, begin + step)
        keys = k if k.dim() == 2 else k[rows]
        dots = q[rows].float() @ keys.transpose(-1, -2)  # [t, J, L]
        out[rows] = (weights[rows, None, :] @ dots.relu_()).squeeze(1)
    outside = torch.arange(length, device=q.device) >= visible[:, None]
    return out.masked_fill_(outside, -torch.inf)


def indexer_logits_reference(q: Tensor, k: Tensor, weights: Tensor, visible: list[int]) -> Tensor:
    """The formula as it stands, one pair at a time; k [L, D]."""
    out = torch.full((q.shape[0], k.shape[0]), -torch.inf, dtype=q.dtype)
    for t in range(q.shape[0]):
        for s in range(min(visible[t], k.shape[0])):
            out[t, s] = sum(
                weights[t, j] * torch.clamp(torch.dot(q[t, j], k[s]), min=0)
                for j in range(q.shape[1])
            )
    return out
