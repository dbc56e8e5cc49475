"""The lightning indexer's scores.

    I[t, s] = sum_j w[t, j] * relu(q[t, j] . k[s])        -inf where s >= visible[t]

Source: DeepSeek-V3.2 report, eq. 1. The ReLU acts on the raw dot product, before the head weight;
weights may be negative, hence scores may be, hence the mask is -inf and never 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.attention import block_bytes

KEY_TILE = 64
"""Keys that vector code takes at once, and more: those left over are added up in another order."""


def indexer_logits(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    visible: Tensor,
    *,
    workspace_bytes: int | None = None,
    batch_invariant: bool = False,
) -> Tensor:
    """Returns index scores [T, L] float32.

    q [T, J, D], k [L, D] (one context for all queries) or [T, L, D] (one each), any float dtype;
    weights [T, J] float32 with every constant folded in (J^-1/2, D^-1/2);
    visible [T] int64: query t may see positions below visible[t].
    Dot products and the epilogue are float32. Per-head scores are held for as many queries at a
    time as fit `workspace_bytes`. batch_invariant: a score depends on its query, key and weights
    alone, to the last bit.
    """
    tokens, heads, width = q.shape
    length, on_cpu = k.shape[-2], q.device.type == "cpu"
    q, k = q.float(), k.float()
    out = torch.empty(tokens, length, dtype=torch.float32, device=q.device)
    budget_bytes = block_bytes(q.device) if workspace_bytes is None else workspace_bytes
    step = max(1, budget_bytes // max(1, heads * length * 4))
    if k.dim() == 2:
        # The first queries of a prefill see a part of the keys only.
        flat, keys = q.reshape(-1, width), k.t()
        for begin in range(0, tokens, step):
            end = min(tokens, begin + step)
            last = length
            if on_cpu:  # whole tiles: a key's score is not to depend on how many follow it
                last = min(length, -(-int(visible[begin:end].max()) // KEY_TILE) * KEY_TILE)
            dots = flat[begin * heads : end * heads] @ keys[:, :last]
            dots = dots.relu_().view(end - begin, heads, last)
            out[begin:end, :last] = _weighted(dots, weights[begin:end], batch_invariant)
    else:
        for begin in range(0, tokens, step):
            rows = slice(begin, begin + step)
            if batch_invariant:  # the products of the other branch, bit by bit
                dots = (q[rows] @ k[rows].transpose(1, 2)).relu_()  # [t, J, L]
                out[rows] = _weighted(dots, weights[rows], batch_invariant)
            else:  # the longer factor first: the shorter one is what gets repacked
                dots = (k[rows] @ q[rows].transpose(1, 2)).relu_()  # [t, L, J]
                out[rows] = (dots @ weights[rows, :, None]).squeeze(2)
    if tokens == 1 and on_cpu:
        out[:, max(0, int(visible)) :] = -torch.inf
        return out
    outside = torch.arange(length, device=q.device) >= visible[:, None]
    return out.masked_fill_(outside, -torch.inf)


def _weighted(dots: Tensor, weights: Tensor, batch_invariant: bool) -> Tensor:
    """Returns the sums [t, L] of dots [t, J, L], which it may overwrite, weighted by [t, J]."""
    if batch_invariant:  # a product of one row adds in an order that depends on L
        return dots.mul_(weights[:, :, None]).sum(1)
    return (weights[:, None, :] @ dots).squeeze(1)


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
