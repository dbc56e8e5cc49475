"""DeepSeekMoE: the router and the routed experts.

Source: DeepSeek-V3 report, eq. 12-16 (sigmoid affinities, bias for selection only) and its
node-limited routing (groups).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.linear import Linear


def route(
    logits: Tensor,
    correction_bias: Tensor,
    *,
    groups: int,
    kept_groups: int,
    top_k: int,
    scaling: float,
    normalise: bool,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns (expert ids [T, top_k] int64, weights [T, top_k] float32).

    logits [T, E] float32: x times the gate; correction_bias [E] float32, added for selection only.
    A group's score is the sum of its two best biased scores; experts of other groups are excluded
    with -inf, since biased scores may be negative. Ties go to the lowest expert id.
    batch_invariant as for `gated`.
    """
    wide = logits.double() if batch_invariant else logits
    scores = torch.sigmoid(wide).float()
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


def gated(gate_up: Tensor, *, batch_invariant: bool = False) -> Tensor:
    """Returns silu(gate) * up [T, W] of gate_up [T, 2 W], gate first; formed in float32.

    batch_invariant: vector and scalar code round exp differently, and which of them meets an
    element depends on T; in float64 they agree to the float32's last bit.
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    if batch_invariant:
        gate, up = gate.double(), up.double()
    return (F.silu(gate) * up).to(gate_up.dtype)


class SwiGlu:
    """down(silu(gate x) * up x)."""

    def __init__(
        self, gate: Tensor, up: Tensor, down: Tensor, *, batch_invariant: bool = False
    ) -> None:
        """gate, up [W, hidden]; down [hidden, W]."""
        self.batch_invariant = batch_invariant
        self.gate_up = Linear(torch.cat((gate, up)), batch_invariant=batch_invariant)
        self.down = Linear(down, batch_invariant=batch_invariant)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns [T, hidden] in x's dtype for x [T, hidden]."""
        return self.down(gated(self.gate_up(x), batch_invariant=self.batch_invariant))


def routed_experts(
    x: Tensor, experts: Tensor, weights: Tensor, swiglus: Sequence[SwiGlu]
) -> Tensor:
    """Returns sum_e weight_e * swiglu_e(x) [T, hidden] in float32.

    experts [T, top_k] int64; weights [T, top_k] float32; swiglus: one per expert. Tokens are
    gathered expert by expert; what lies between the two products is formed for all at once.
    """
    tokens, top_k = experts.shape
    flat = experts.flatten()
    if tokens == 1:  # nothing to gather, nothing to put back
        order, rows = None, x.expand(top_k, -1)
        active = [(swiglus[expert], 1) for expert in flat.tolist()]
    else:
        order = flat.argsort(stable=True)
        rows = x.index_select(0, order // top_k)
        loads = torch.bincount(flat, minlength=len(swiglus)).tolist()
        active = [(swiglus[expert], load) for expert, load in enumerate(loads) if load]
    counts = [count for _, count in active]
    parts = zip(active, rows.split(counts), strict=True)
    hidden = torch.cat([swiglu.gate_up(part) for (swiglu, _), part in parts])
    hidden = gated(hidden, batch_invariant=swiglus[0].batch_invariant)
    parts = zip(active, hidden.split(counts), strict=True)
    results = torch.cat([swiglu.down(part) for (swiglu, _), part in parts]).float()
    if order is not None:  # so that each token's experts are summed in the same order every time
        sorted_results, results = results, torch.empty_like(results)
        results[order] = sorted_results
    return (results.view(tokens, top_k, -1) * weights[:, :, None]).sum(1)


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
