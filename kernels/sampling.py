"""One token per row of logits: temperature, top-k, min-p, top-p, and one draw.

The filters apply to the tempered distribution in the order top-k, min-p, top-p. Tokens stand by
falling logit, equal ones by rising id, and a draw inverts the cumulative distribution of those that
are kept; its noise is a hash of (seed, choice, position), so a row's token depends on that row
alone, in any batch.

The same logits give the same token on every machine and from every backend. A token's mass is a
whole number, exp((logit - largest) / temperature) in units of 2^-28, so that no sum depends on an
order of addition; and the exponential is a polynomial of single float32 products and sums, which
IEEE 754 rounds everywhere alike. (No backend may fuse the two.)

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
UNIT = 2**28
"""Masses of the most likely token; a vocabulary of 2^24 such tokens still adds up exactly in
float64, with which the targets of top-p and of the noise are computed."""
LOG2_E = 1.4426950216293335
"""log2(e) in float32."""
EXP2 = (
    0.6931470036506653,
    0.24022242426872253,
    0.05550733581185341,
    0.009671512991189957,
    0.0013264723820611835,
)
"""2^x = 1 + x (EXP2[0] + x (EXP2[1] + ...)) for |x| <= 1/2, of least relative error: 1e-7, and 2e-7
with the roundings of float32."""
LEAST_POWER = -30.0
"""Below 2^-30 of the largest a token's mass is 0."""
LARGEST_LOGIT = 1e30
"""Logits beyond it count as this, on either side: no temperature makes a difference infinite."""
_MASK = (1 << 64) - 1
_INCREMENT = 0x9E3779B97F4A7C15
_FIRST_FACTOR = 0xBF58476D1CE4E5B9
_SECOND_FACTOR = 0x94D049BB133111EB


def uniform(seeds: Tensor, choices: Tensor, positions: Tensor) -> Tensor:
    """Returns numbers in (0, 1) [S] float64 from int64 [S] each, alike on every machine."""
    increment, first, second = map(_signed, (_INCREMENT, _FIRST_FACTOR, _SECOND_FACTOR))
    state = torch.zeros_like(seeds)
    for value in (seeds, choices, positions):
        state.add_(value).add_(increment)
        state.bitwise_xor_(_shifted(state, 30)).mul_(first)
        state.bitwise_xor_(_shifted(state, 27)).mul_(second)
        state.bitwise_xor_(_shifted(state, 31))
    return _shifted(state, 12).double().add_(0.5).div_(1 << 52)


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

    logits [S, vocabulary] float32, -inf for what may not be drawn, NaN taken for -inf; temperature,
    top_p, min_p [S] float32, temperature below 1e-5 for the most likely token; top_k [S] int32, 0
    for no limit; seeds, choices, positions [S] int64: the arguments of `uniform`. Every row keeps
    its most likely token; of a row without a logit above -inf all tokens are alike.
    """
    logits = _limited(logits)
    columns = temperature, top_k, top_p, min_p, seeds, choices, positions
    at = (temperature >= GREEDY_TEMPERATURE).nonzero().squeeze(1)
    if len(at) == len(logits):
        return _drawn(logits, *columns)
    tokens = logits.argmax(-1)  # the others need no order
    if len(at):
        tokens[at] = _drawn(logits[at], *(column[at] for column in columns))
    return tokens


def most_likely(logits: Tensor) -> Tensor:
    """Returns the tokens [S] int64 that `sample` gives without a temperature."""
    return _limited(logits).argmax(-1)


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


def _drawn(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    choices: Tensor,
    positions: Tensor,
) -> Tensor:
    """`sample` of rows that have a temperature."""
    vocabulary = logits.shape[1]
    ids = _by_falling_logit(logits)
    likelihood = _likelihood(logits.gather(1, ids), temperature)
    masses = (likelihood * UNIT).add_(0.5).long()
    # Every filter keeps a prefix, and the prefix's mass says which.
    cumulative = masses.cumsum(-1)
    likely = masses.masked_fill(likelihood < min_p[:, None], 0).sum(-1).clamp_min(UNIT)
    limit = torch.where((top_k > 0) & (top_k < vocabulary), top_k, vocabulary).long()
    kept = torch.minimum(likely, cumulative.gather(1, limit[:, None] - 1).squeeze(1))
    # A token stays while the mass before it is below top_p, so the most likely always does.
    reached = (kept.double() * top_p.double()).ceil().long().clamp_min(1).minimum(kept)
    last = _reaching(cumulative, reached)
    kept = torch.where(top_p < 1.0, cumulative.gather(1, last).squeeze(1), kept)
    noise = uniform(seeds, choices, positions)
    drawn = _reaching(cumulative, (kept.double() * noise).ceil().long())
    return ids.gather(1, drawn).squeeze(1)


def _limited(logits: Tensor) -> Tensor:
    least, most = -LARGEST_LOGIT, LARGEST_LOGIT
    return logits.nan_to_num(nan=least, posinf=most, neginf=least).clamp_(least, most)


def _by_falling_logit(logits: Tensor) -> Tensor:
    """The tokens [S, vocabulary] int64 of each row, equal logits by rising id."""
    bits = (logits + 0.0).view(torch.int32)  # one zero only
    falling = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).bitwise_not_()
    keys = falling.long().bitwise_left_shift_(32)
    keys.bitwise_or_(torch.arange(logits.shape[1], device=logits.device))
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=-1)  # in place, and vectorised where PyTorch's is not
    else:
        keys = keys.sort(dim=-1).values
    return keys.bitwise_and_(0xFFFFFFFF)


def _likelihood(ordered: Tensor, temperature: Tensor) -> Tensor:
    """exp((logit - largest) / temperature) of logits [S, vocabulary], in each row the largest
    first; temperature [S] >= 1e-5. The operations and their order are the contract."""
    rate = torch.tensor(LOG2_E, device=ordered.device) / temperature
    power = (ordered - ordered[:, :1]).mul_(rate[:, None]).clamp_min_(LEAST_POWER)
    whole = (power + 0.5).floor_()
    x = power.sub_(whole)
    polynomial = x * EXP2[-1]
    for coefficient in EXP2[-2::-1]:
        polynomial.add_(coefficient).mul_(x)
    scale = whole.int().add_(127).bitwise_left_shift_(23).view(torch.float32)
    return polynomial.add_(1.0).mul_(scale)


def _reaching(cumulative: Tensor, target: Tensor) -> Tensor:
    """The first place [S, 1] at which the cumulative mass [S, vocabulary] is the target [S]."""
    return torch.searchsorted(cumulative, target[:, None])


def _signed(value: int) -> int:
    """An unsigned 64-bit constant as int64 holds it."""
    return value - (1 << 64) if value >> 63 else value


def _shifted(x: Tensor, bits: int) -> Tensor:
    """int64 x shifted right with zeros coming in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
