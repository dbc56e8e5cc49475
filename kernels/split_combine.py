"""Merging attention over disjoint parts of a row's keys, by the parts' log-sum-exp.

    out = sum over parts of 2^(lse_i - lse) out_i,   lse = log2 of the sum of 2^lse_i

Source: FlashAttention-2, section 3.1 (rescaling partial results); FlashDecoding for its use.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def split_combine(partials: Tensor, lse: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns the merged averages [T, H, C] in `dtype` and their natural log-sum-exp [T, H].

    partials [T, S, H, C] float32: averages over each of S parts; lse [T, S, H] float32 to base 2,
    -inf for a part without a key, whose partial is not looked at. A row all of whose parts are
    empty gives 0 and -inf. The parts are added in their order, so the result of a row depends on
    its own partials alone.
    """
    highest = lse.amax(1, keepdim=True)
    # In an empty row -inf minus -inf would be NaN.
    weights = (lse - highest.masked_fill(highest == -torch.inf, 0.0)).exp2()  # [T, S, H]
    total = weights.sum(1)
    partials = partials.masked_fill((lse == -torch.inf)[..., None], 0.0)
    out = (partials * weights[..., None]).sum(1) / total.masked_fill(total == 0, 1.0)[..., None]
    return out.to(dtype), (highest.squeeze(1) + total.log2()) * math.log(2)


def split_combine_reference(
    partials: Tensor, lse: list[list[list[float]]]
) -> tuple[Tensor, list[list[float]]]:
    """One row and head at a time in Python floats: weights by their definition."""
    tokens, splits, heads, width = partials.shape
    out = torch.zeros(tokens, heads, width, dtype=partials.dtype)
    merged = [[-math.inf] * heads for _ in range(tokens)]
    for t in range(tokens):
        for h in range(heads):
            parts = [s for s in range(splits) if lse[t][s][h] > -math.inf]
            if parts:
                highest = max(lse[t][s][h] for s in parts)
                weights = {s: 2.0 ** (lse[t][s][h] - highest) for s in parts}
                total = sum(weights.values())
                for s, weight in weights.items():
                    out[t, h] += weight / total * partials[t, s, h]
                merged[t][h] = math.log(2) * highest + math.log(total)
    return out, merged
