"""One token per row of logits: temperature, top-k, min-p, top-p, and one draw.

The filters apply to the tempered distribution in the order top-k, min-p, top-p. Tokens stand by
falling logit, equal ones by rising id, and a draw inverts the cumulative distribution of those that
are kept; its noise is a hash of (seed, choice, position), so a row's token depends on that row
alone, in any batch.

Sources: Holtzman et al. 2020 (top-p); Minh et al. 2024 (min-p); Steele, Lea, Flood 2014 (the
SplitMix64 finaliser, applied per argument).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

GREEDY_TEMPERATURE = 1e-5
"""Below it the most likely token is taken: dividing by less would overflow float32."""
_MASK = (1 << 64) - 1
_INCREMENT = 0x9E3779B97F4A7C15
_FIRST_FACTOR = 0xBF58476D1CE4E5B9
_SECOND_FACTOR = 0x94D049BB133111EB


def uniform(seeds: Tensor, choices: Tensor, positions: Tensor) -> Tensor:
    """Returns numbers in (0, 1) [S] float64 from int64 [S] each, alike on every machine."""
    state = torch.zeros_like(seeds)
    for value in (seeds, choices, positions):
        state = state + value + _signed(_INCREMENT)
        state = (state ^ _shifted(state, 30)) * _signed(_FIRST_FACTOR)
        state = (state ^ _shifted(state, 27)) * _signed(_SECOND_FACTOR)
        state = state ^ _shifted(state, 31)
    return (_shifted(state, 12).double() + 0.5) / (1 << 52)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    choices: Tensor,
    positions: Tensor,
) -> Tensor:
    """Returns one token per row [S] int64.

    logits [S, vocabulary] float32, -inf for what may not be drawn; temperature, top_p, min_p [S]
    float32, temperature below 1e-5 for the most likely token; top_k [S] int32, 0 for no limit;
    seeds, choices, positions [S] int64: the arguments of `uniform`. Every row keeps its most likely
    token; one of NaN gives some token.
    """
    greedy = temperature < GREEDY_TEMPERATURE
    tempered = logits / torch.where(greedy, 1.0, temperature)[:, None]
    ordered, ids = tempered.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    limit = torch.where(top_k > 0, top_k, logits.shape[1])
    p = ordered.masked_fill(rank >= limit[:, None], -torch.inf).softmax(-1)
    p = p.masked_fill(p < p[:, :1] * min_p[:, None], 0.0)
    p = p / p.sum(-1, keepdim=True)
    # A token stays while the mass before it is below top_p, so the most likely always does.
    before = p.cumsum(-1) - p
    p = p.masked_fill((before >= top_p[:, None]) & (rank > 0), 0.0)
    cumulative = p.cumsum(-1)
    noise = uniform(seeds, choices, positions).float()[:, None]
    drawn = torch.searchsorted(cumulative, noise * cumulative[:, -1:])
    # Rounding must not step past the kept tokens, nor a row of NaN before the first.
    last = ((p > 0).sum(-1, keepdim=True) - 1).clamp_min(0)
    tokens = ids.gather(1, torch.minimum(drawn, last)).squeeze(1)
    return torch.where(greedy, logits.argmax(-1), tokens)


def uniform_reference(seed: int, choice: int, position: int) -> float:
    """The hash in Python integers."""
    state = 0
    for value in (seed, choice, position):
        state = (state + (value & _MASK) + _INCREMENT) & _MASK
        state = ((state ^ (state >> 30)) * _FIRST_FACTOR) & _MASK
        state = ((state ^ (state >> 27)) * _SECOND_FACTOR) & _MASK
        state ^= state >> 31
    return ((state >> 12) + 0.5) / (1 << 52)


def kept_reference(
    logits: Sequence[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> list[tuple[int, float]]:
    """(token, probability) of what the filters keep, the most likely first, in Python floats."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if temperature < GREEDY_TEMPERATURE:
        return [(order[0], 1.0)]
    order = order[: top_k or len(order)]
    weights = [math.exp((logits[token] - logits[order[0]]) / temperature) for token in order]
    weights = weights[:1] + [weight for weight in weights[1:] if weight >= min_p]
    total = sum(weights)
    kept: list[tuple[int, float]] = []
    before = 0.0
    for token, weight in zip(order, weights, strict=False):
        if kept and before >= top_p * total:
            break
        kept.append((token, weight))
        before += weight
    return [(token, weight / before) for token, weight in kept]


def sample_reference(kept: Sequence[tuple[int, float]], noise: float) -> int:
    """The first of the kept tokens whose cumulative probability reaches the noise."""
    cumulative = 0.0
    for token, p in kept:
        cumulative += p
        if cumulative >= noise:
            return token
    return kept[-1][0]


def _signed(value: int) -> int:
    """An unsigned 64-bit constant as int64 holds it."""
    return value - (1 << 64) if value >> 63 else value


def _shifted(x: Tensor, bits: int) -> Tensor:
    """int64 x shifted right with zeros coming in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
