"""From logits to tokens: what is allowed, penalties, temperature, filters, one draw per row.

A draw depends on its row alone, and is by the contract of `kernels.sampling`: the same request
gives the same tokens in any batch, and by the kernel (`engine.hopper.sampler`) as by PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from engine.adjustments import adjust, restrict
from engine.sampler_state import SamplerState
from engine.token_masks import AllowedTokens
from engine.transfer import brought
from kernels import sampling
from scheduler.logprobs import TokenLogprobs

_MASK = (1 << 64) - 1
_LARGEST_INT32 = (1 << 31) - 1
LOGITS_BYTES = 64 * 2**20
"""Logits of prompt tokens that are looked at together."""
NO_TOKEN = -1
"""Sampled where no token is allowed."""


Draw = Callable[[Tensor, Sequence[SamplerState], Sequence[int]], Tensor]
"""Logits [S, vocab] float32, rows, the position each token will have -> tokens [S] int64."""


def draw(logits: Tensor, rows: Sequence[SamplerState], positions: Sequence[int]) -> Tensor:
    """Returns one token per row [S] int64, by PyTorch's operators."""
    if all(row.sampling.temperature < sampling.GREEDY_TEMPERATURE for row in rows):
        return sampling.most_likely(logits)
    settings = brought(torch.tensor(packed(rows, positions)), logits.device)
    return sampling.sample(logits, *unpacked(settings, len(rows)))


def sample(
    logits: Tensor,
    rows: Sequence[SamplerState],
    positions: Sequence[int],
    allowed: AllowedTokens | None = None,
    draw: Draw = draw,
) -> list[int]:
    """Returns one token per row and notes it in the row's state; NO_TOKEN where none is allowed.

    logits [S, vocab] float32, left unchanged; positions: the position each token will have;
    allowed: what grammars say of some of the rows.
    """
    tokens: list[int] = choose(logits, rows, positions, allowed, draw).tolist()
    for row, token in zip(rows, tokens, strict=True):
        if token != NO_TOKEN:
            row.add(token)
    return tokens


def choose(
    logits: Tensor,
    rows: Sequence[SamplerState],
    positions: Sequence[int],
    allowed: AllowedTokens | None = None,
    draw: Draw = draw,
) -> Tensor:
    """Returns the tokens of `sample` [S] int64 on the device, and does not wait for it."""
    constrained = set(allowed.rows) if allowed else set()
    constrained.update(i for i, row in enumerate(rows) if row.restricted)
    if not constrained and not any(row.adjusts for row in rows):
        return draw(logits, rows, positions)
    adjusted = logits.clone()
    if allowed:
        at = brought(torch.tensor(allowed.rows), logits.device)
        adjusted[at] = adjusted[at].masked_fill(~allowed.tokens, -torch.inf)
    restrict(adjusted, rows)
    adjust(adjusted, rows, [i in constrained for i in range(len(rows))])
    tokens = draw(adjusted, rows, positions)
    if constrained:
        at = brought(torch.tensor(list(constrained)), logits.device)
        possible = (adjusted[at] > -torch.inf).any(-1)
        tokens[at] = torch.where(possible, tokens[at], NO_TOKEN)
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


def packed(rows: Sequence[SamplerState], positions: Sequence[int]) -> list[int]:
    """Returns what draws take beside logits, column after column, as integers of 8 bytes. Each
    column begins at 16 bytes' steps: kernels are compiled for what does."""
    count = len(rows)
    samplings = [row.sampling for row in rows]
    halves = np.zeros((4, _width(count)), np.float32)
    # Greedy is what is so in float64: rounded, a temperature may have reached the limit.
    halves[0, :count] = [
        s.temperature if s.temperature >= sampling.GREEDY_TEMPERATURE else 0.0 for s in samplings
    ]
    halves[1, :count] = [s.top_p for s in samplings]
    halves[2, :count] = [s.min_p for s in samplings]
    halves.view(np.int32)[3, :count] = [min(s.top_k, _LARGEST_INT32) for s in samplings]
    whole = np.zeros((3, _width(count)), np.uint64)
    whole[0, :count] = [s.seed & _MASK for s in samplings]
    whole[1, :count] = [row.choice for row in rows]
    whole[2, :count] = positions
    integers: list[int] = halves.view(np.int64).ravel().tolist()
    return integers + whole.view(np.int64).ravel().tolist()


def packed_length(count: int) -> int:
    """Returns how many integers `packed` gives for so many rows."""
    return 5 * _width(count)


def unpacked(integers: Tensor, count: int) -> tuple[Tensor, ...]:
    """Returns temperature, top_k, top_p, min_p, seeds, choices and positions [count], in the dtypes
    of `kernels.sampling.sample`, from the `packed` integers [n] int64, on their device."""
    halves, whole = integers.split([2 * _width(count), 3 * _width(count)])
    temperature, top_p, min_p, _ = halves.view(torch.float32).view(4, -1)[:, :count]
    top_k = halves.view(torch.int32).view(4, -1)[3, :count]
    return (temperature, top_k, top_p, min_p, *whole.view(3, -1)[:, :count])


def _width(count: int) -> int:
    """Entries of a column: their bytes are a multiple of 16 in each dtype."""
    return -(-count // 4) * 4
