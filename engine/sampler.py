"""From logits to tokens: what is allowed, penalties, temperature, filters, one draw per row.

A draw depends on its row alone: the noise is a hash of (seed, choice, position), so the same
request gives the same tokens in any batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.adjustments import adjust, restrict
from engine.sampler_state import SamplerState
from engine.token_masks import AllowedTokens
from scheduler.logprobs import TokenLogprobs

_MASK = (1 << 64) - 1
GREEDY_TEMPERATURE = 1e-5
"""Below it the most likely token is taken: dividing by less would overflow float32."""
LOGITS_BYTES = 64 * 2**20
"""Logits of prompt tokens that are looked at together."""
NO_TOKEN = -1
"""Sampled where no token is allowed."""


def uniform(seed: int, choice: int, position: int) -> float:
    """Returns a number in (0, 1), the same for the same arguments on every machine.

    Source: the SplitMix64 finaliser (Steele, Lea, Flood 2014), applied per argument.
    """
    state = 0
    for value in (seed, choice, position):
        state = (state + (value & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return ((state >> 12) + 0.5) / (1 << 52)


def sample(
    logits: Tensor,
    rows: list[SamplerState],
    positions: list[int],
    allowed: AllowedTokens | None = None,
) -> list[int]:
    """Returns one token per row and notes it in the row's state; NO_TOKEN where none is allowed.

    logits [S, vocab] float32, left unchanged; positions: the position each token will have;
    allowed: what grammars say of some of the rows.
    """
    adjusted = logits
    constrained = set(allowed.rows) if allowed else set()
    constrained.update(i for i, row in enumerate(rows) if row.restricted)
    if constrained or any(row.adjusts for row in rows):
        adjusted = logits.clone()
        if allowed:
            adjusted[allowed.rows] = adjusted[allowed.rows].masked_fill(~allowed.tokens, -torch.inf)
        restrict(adjusted, rows)
        adjust(adjusted, rows, [i in constrained for i in range(len(rows))])
    tokens = adjusted.argmax(-1).tolist()
    if constrained:
        impossible = (adjusted.amax(-1) == -torch.inf).tolist()
        tokens = [NO_TOKEN if no else t for t, no in zip(tokens, impossible, strict=True)]
    drawn = [
        i
        for i, row in enumerate(rows)
        if row.sampling.temperature >= GREEDY_TEMPERATURE and tokens[i] != NO_TOKEN
    ]
    if drawn:
        draws = _draw(adjusted[drawn], [rows[i] for i in drawn], [positions[i] for i in drawn])
        for i, token in zip(drawn, draws, strict=True):
            tokens[i] = token
    for row, token in zip(rows, tokens, strict=True):
        if token != NO_TOKEN:
            row.add(token)
    return tokens


def logprobs_of(
    logits: Tensor, tokens: list[int], tops: list[int | None]
) -> list[TokenLogprobs | None]:
    """Returns, per row, the log-probability of its token and of its `top` most likely ones.

    logits [S, vocab] float32; tops: None where no logprobs are wanted.
    """
    rows = [i for i, top in enumerate(tops) if top is not None]
    logprobs = torch.log_softmax(logits[rows], -1)
    own = logprobs.gather(1, torch.tensor([[tokens[i]] for i in rows], device=logits.device))
    best = logprobs.topk(min(max(top or 0 for top in tops), logits.shape[1]))
    found: list[TokenLogprobs | None] = [None] * len(tops)
    for i, value, ids, values in zip(
        rows, own.squeeze(1).tolist(), best.indices.tolist(), best.values.tolist(), strict=True
    ):
        found[i] = TokenLogprobs(value, list(zip(ids, values, strict=True))[: tops[i]])
    return found


def logprobs_of_known(
    head: Callable[[Tensor], Tensor], hidden: Tensor, tokens: list[int], top: int, vocab_size: int
) -> list[TokenLogprobs]:
    """Returns, per token, its log-probability and rank, and its place's `top` most likely ones.

    head: hidden [n, hidden] -> logits [n, vocab] float32, called for no more lines at a time than
    LOGITS_BYTES hold. hidden [T, hidden]: line i is what the model says behind the token
    before tokens[i].
    """
    found: list[TokenLogprobs] = []
    count = max(1, LOGITS_BYTES // (4 * vocab_size))
    for start in range(0, len(tokens), count):
        some = tokens[start : start + count]
        logprobs = torch.log_softmax(head(hidden[start : start + count]), -1)
        own = logprobs.gather(1, torch.tensor(some, device=logprobs.device)[:, None])
        ranks = (logprobs > own).sum(-1) + 1
        best = logprobs.topk(min(top, vocab_size))
        for value, rank, ids, values in zip(
            own.squeeze(1).tolist(),
            ranks.tolist(),
            best.indices.tolist(),
            best.values.tolist(),
            strict=True,
        ):
            found.append(TokenLogprobs(value, list(zip(ids, values, strict=True)), rank))
    return found


def _draw(logits: Tensor, rows: list[SamplerState], positions: list[int]) -> list[int]:
    """Returns one draw per row by inverting the cumulative distribution of the kept tokens.

    Filters apply to the tempered distribution in the order top_k, min_p, top_p, as in vLLM.
    """

    samplings = [row.sampling for row in rows]
    noise = [
        uniform(row.sampling.seed, row.choice, position)
        for row, position in zip(rows, positions, strict=True)
    ]
    vocab = logits.shape[1]
    settings = [
        [s.temperature for s in samplings],
        [float(s.top_k or vocab) for s in samplings],
        [s.min_p for s in samplings],
        [s.top_p for s in samplings],
        noise,
    ]
    # One copy to the device for all of them; each is a column [S, 1].
    columns = torch.tensor(settings, device=logits.device, dtype=torch.float32)[:, :, None]
    temperature, top_k, min_p, top_p, drawn_at = columns
    tempered = logits / temperature
    ordered, ids = tempered.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(vocab, device=logits.device)
    ordered = ordered.masked_fill(rank >= top_k, -torch.inf)
    p = ordered.softmax(-1)
    p = p.masked_fill(p < p[:, :1] * min_p, 0.0)
    p = p / p.sum(-1, keepdim=True)
    # A token stays while the mass before it is below top_p, so the most likely always does.
    before = p.cumsum(-1) - p
    p = p.masked_fill((before >= top_p) & (rank > 0), 0.0)
    cumulative = p.cumsum(-1)
    drawn = torch.searchsorted(cumulative, drawn_at * cumulative[:, -1:])
    # Rounding must not step past the kept tokens, nor a row of NaN before the first.
    last = ((p > 0).sum(-1, keepdim=True) - 1).clamp_min(0)
    return ids.gather(1, torch.minimum(drawn, last)).squeeze(1).tolist()
