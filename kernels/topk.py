"""Exact, deterministic top-k of index scores."""

from __future__ import annotations

import torch
from torch import Tensor

NONE = -1
PEAK_BYTES_PER_SCORE = 16
"""Scores, their copy without NaN, int32 ranks of the ties, and four masks: held at once."""


def select_top_k(scores: Tensor, k: int) -> Tensor:
    """Returns the mask [T, L] of the k largest scores of each row; ties go to the lowest position.

    scores [T, L] float32; -inf and NaN are never selected, so a row may have fewer than k.
    The result depends on the row alone: not on T, on L's padding with -inf, or on the device.
    """
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    valid = scores > -torch.inf
    if scores.shape[1] <= k:
        return valid
    threshold = scores.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    above = scores > threshold
    ties = (scores == threshold) & valid
    room = k - above.sum(1, keepdim=True)
    return above | (ties & (ties.cumsum(1, dtype=torch.int32) <= room))


def top_k_positions(scores: Tensor, k: int) -> tuple[Tensor, bool]:
    """Returns the positions [T, k] int64 that `select_top_k` selects, ascending, packed left and
    padded with -1, and whether there is no padding.

    When every row has exactly k scores that reach its k-th, no tie has to be broken, and the
    order in which topk meets equal scores does not matter. Almost every call ends there.
    """
    if scores.shape[1] >= k:
        best = scores.topk(k, dim=1, sorted=False)
        kth = best.values.amin(1, keepdim=True)
        # A NaN makes the comparison false, -inf as k-th makes too many true: both leave k unmet.
        if bool(((scores >= kth).sum(1) == k).all()) and bool((kth > -torch.inf).all()):
            return best.indices.sort(1).values, True
    return positions_of(select_top_k(scores, k), k), False


def positions_of(selected: Tensor, k: int) -> Tensor:
    """Returns the selected positions [T, k] int64, ascending, packed left, padded with -1.

    selected [T, L] bool with at most k true values a row.
    """
    rows, positions = selected.nonzero(as_tuple=True)
    counts = selected.sum(1)
    first = counts.cumsum(0) - counts
    rank = torch.arange(rows.shape[0], device=rows.device) - first[rows]
    out = torch.full((selected.shape[0], k), NONE, dtype=torch.int64, device=selected.device)
    out[rows, rank] = positions
    return out


def select_top_k_reference(scores: Tensor, k: int) -> list[list[int]]:
    """Positions per row by sorting (score descending, position ascending)."""
    rows = []
    for row in scores.tolist():
        valid = [s for s, score in enumerate(row) if score == score and score != float("-inf")]
        best = sorted(valid, key=lambda s: (-row[s], s))[:k]
        rows.append(sorted(best))
    return rows
