"""DeepSeekMoE: the router and the routed experts.

Source: DeepSeek-V3 report, eq. 12-16 (sigmoid affinities, bias for selection only) and its
node-limited routing (groups).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def route(
    x: Tensor,
    gate: Tensor,
    correction_bias: Tensor,
    *,
    groups: int,
    kept_groups: int,
    top_k: int,
    scaling: float,
    normalise: bool,
) -> tuple[Tensor, Tensor]:
    """Returns (expert ids [T, top_k] int64, weights [T, top_k] float32).

    x [T, hidden]; gate [E, hidden] float32; correction_bias [E] float32, added for selection only.
    A group's score is the sum of its two best biased scores; experts of other groups are excluded
    with -inf, since biased scores may be negative. Ties go to the lowest expert id.
    """
    scores = torch.sigmoid(F.linear(x.float(), gate))
    biased = scores + correction_bias
    if kept_groups < groups:
        grouped = biased.unflatten(1, (groups, -1))
        group_scores = grouped.topk(min(2, grouped.shape[2]), dim=2).values.sum(2)
        best = group_scores.sort(dim=1, descending=True, stable=True).indices[:, :kept_groups]
        keep = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(1, best, True)
        biased = grouped.masked_fill(~keep[:, :, None], -torch.inf).flatten(1)
    experts = biased.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, experts)
    if normalise:
        weights = weights / (weights.sum(1, keepdim=True) + 1e-20)
    return experts, weights * scaling


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Returns down(silu(gate x) * (up x)) in x's dtype; the product is formed in float32.

    x [T, hidden]; gate_up [2 W, hidden], gate rows first; down [hidden, W].
    """
    gate, up = F.linear(x, gate_up).float().chunk(2, dim=-1)
    return F.linear((F.silu(gate) * up).to(x.dtype), down)


def routed_experts(
    x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Returns sum_e weight_e * expert_e(x) [T, hidden] in float32.

    experts [T, top_k] int64; weights [T, top_k] float32; gate_up [E, 2 W, hidden];
    down [E, hidden, W]. Tokens are gathered expert by expert.
    """
    tokens, top_k = experts.shape
    order = experts.flatten().argsort(stable=True)
    counts = torch.bincount(experts.flatten(), minlength=gate_up.shape[0]).tolist()
    token_of = order // top_k
    gathered = x[token_of]
    results = torch.empty(tokens * top_k, x.shape[1], dtype=torch.float32, device=x.device)
    begin = 0
    for expert, count in enumerate(counts):
        if count:
            part = slice(begin, begin + count)
            results[part] = swiglu(gathered[part], gate_up[expert], down[expert]).float()
            begin += count
    # Back to token order, so that each token's experts are summed in the same order every time.
    unsorted = torch.empty_like(results)
    unsorted[order] = results
    return torch.einsum("tkd,tk->td", unsorted.view(tokens, top_k, -1), weights)


def route_reference(
    x: Tensor, gate: Tensor, bias: Tensor, groups: int, kept_groups: int, top_k: int, scaling: float
) -> list[dict[int, float]]:
    """Expert id -> weight of each token, by plain sorting."""
    routed = []
    for row in x:
        scores = torch.sigmoid(gate @ row).tolist()
        biased = [s + b for s, b in zip(scores, bias.tolist(), strict=True)]
        size = len(scores) // groups
        value = [sum(sorted(biased[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
        kept = sorted(range(groups), key=lambda g: (-value[g], g))[:kept_groups]
        candidates = [e for e in range(len(scores)) if e // size in kept]
        chosen = sorted(candidates, key=lambda e: (-biased[e], e))[:top_k]
        total = sum(scores[e] for e in chosen) + 1e-20
        routed.append({e: scaling * scores[e] / total for e in chosen})
    return routed
