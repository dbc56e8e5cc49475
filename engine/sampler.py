"""From logits to tokens: what is allowed, penalties, temperature, filters, one draw per row.

A draw depends on its row alone: the noise is a hash of (seed, choice, position), so the same
request gives the same tokens in any batch.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.token_masks import AllowedTokens
from scheduler.plan import TokenLogprobs
from scheduler.request import Sampling

_MASK = (1 << 64) - 1
GREEDY_TEMPERATURE = 1e-5
"""Below it the most likely token is taken: dividing by less would overflow float32."""
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


@dataclass
class SamplerState:
    """What sampling has to remember of one slot."""

    sampling: Sampling
    choice: int
    prompt: frozenset[int] = frozenset()
    """Distinct prompt tokens, kept only when a repetition penalty needs them."""
    generated: Counter[int] = field(default_factory=Counter)
    output_ids: list[int] = field(default_factory=list)
    """The same tokens in order."""
    stop_tokens: tuple[int, ...] = ()
    """Tokens that may not be drawn before min_tokens."""
    reasons: bool = False
    """Has a reasoning budget, and nothing has ended its reasoning yet."""

    @classmethod
    def start(
        cls,
        sampling: Sampling,
        choice: int,
        token_ids: list[int],
        prompt_tokens: int,
        eos_token_ids: tuple[int, ...],
    ) -> SamplerState:
        """The state of a slot whose known tokens are `token_ids`, the first ones its prompt."""
        repetition = sampling.repetition_penalty != 1.0
        state = cls(
            sampling,
            choice,
            frozenset(token_ids[:prompt_tokens]) if repetition else frozenset(),
            stop_tokens=(*(() if sampling.ignore_eos else eos_token_ids), *sampling.stop_token_ids),
            reasons=sampling.reasoning is not None,
        )
        for token in token_ids[prompt_tokens:]:
            state.add(token)
        return state

    def add(self, token: int) -> None:
        """Takes in a token that was sampled."""
        self.generated[token] += 1
        self.output_ids.append(token)
        budget = self.sampling.reasoning
        if self.reasons and budget is not None:
            self.reasons = token != budget.end_token and token not in budget.also_ended_by

    @property
    def must_end_reasoning(self) -> bool:
        budget = self.sampling.reasoning
        return self.reasons and budget is not None and len(self.output_ids) >= budget.max_tokens

    @property
    def restricted(self) -> bool:
        """Whether some tokens may not be sampled next, whatever their logits are."""
        s = self.sampling
        return bool(s.allowed_token_ids or s.bad_words) or self.must_end_reasoning


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
    if constrained or any(_adjusts(row) for row in rows):
        adjusted = logits.clone()
        if allowed:
            adjusted[allowed.rows] = adjusted[allowed.rows].masked_fill(~allowed.tokens, -torch.inf)
        for i, (line, row) in enumerate(zip(adjusted, rows, strict=True)):
            if i in constrained:
                _restrict(line, row)
            _adjust(line, row, restricted=i in constrained)
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


def _adjusts(row: SamplerState) -> bool:
    s = row.sampling
    return bool(
        s.frequency_penalty
        or s.presence_penalty
        or s.repetition_penalty != 1.0
        or s.logit_bias
        or len(row.output_ids) < s.min_tokens
    )


def _restrict(line: Tensor, row: SamplerState) -> None:
    """Leaves only the tokens that the request's own limits allow, in place on one row [vocab]."""
    s = row.sampling
    keep: list[int] | None = None
    if s.reasoning is not None and row.must_end_reasoning:
        keep = [s.reasoning.end_token]
    elif s.allowed_token_ids:
        keep = list(s.allowed_token_ids)
    if keep is not None:
        kept = line[keep]
        line.fill_(-torch.inf)
        line[keep] = kept
    for *before, last in s.bad_words:
        if not before or row.output_ids[-len(before) :] == before:
            line[last] = -torch.inf


def _adjust(line: Tensor, row: SamplerState, *, restricted: bool) -> None:
    """Penalties, bias and forbidden tokens, in place on one row [vocab].

    restricted: not every token was allowed before.

    Source: OpenAI's definition of the frequency and presence penalties (generated tokens only);
    CTRL (Keskar et al. 2019) for the repetition penalty (prompt and generated tokens).
    """
    s = row.sampling
    if s.repetition_penalty != 1.0 and (row.prompt or row.generated):
        seen = torch.tensor(sorted(row.prompt | row.generated.keys()), device=line.device)
        value = line[seen]
        line[seen] = torch.where(
            value > 0, value / s.repetition_penalty, value * s.repetition_penalty
        )
    if (s.frequency_penalty or s.presence_penalty) and row.generated:
        ids = torch.tensor(list(row.generated), device=line.device)
        counts = torch.tensor(list(row.generated.values()), device=line.device, dtype=line.dtype)
        line[ids] -= counts * s.frequency_penalty + s.presence_penalty
    if s.logit_bias:
        ids = torch.tensor(list(s.logit_bias), device=line.device)
        line[ids] += torch.tensor(list(s.logit_bias.values()), device=line.device)
    if len(row.output_ids) < s.min_tokens and row.stop_tokens:
        stops = list(row.stop_tokens)
        ends = line[stops]
        line[stops] = -torch.inf
        # Where a grammar has nothing more to say, an answer too short is better than none.
        if restricted and (line == -torch.inf).all():
            line[stops] = ends


def _draw(logits: Tensor, rows: list[SamplerState], positions: list[int]) -> list[int]:
    """Returns one draw per row by inverting the cumulative distribution of the kept tokens.

    Filters apply to the tempered distribution in the order top_k, min_p, top_p, as in vLLM.
    """

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=logits.device, dtype=torch.float32)[:, None]

    samplings = [row.sampling for row in rows]
    tempered = logits / column([s.temperature for s in samplings])
    ordered, ids = tempered.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    top_k = column([s.top_k or logits.shape[1] for s in samplings])
    ordered = ordered.masked_fill(rank >= top_k, -torch.inf)
    p = ordered.softmax(-1)
    p = p.masked_fill(p < p[:, :1] * column([s.min_p for s in samplings]), 0.0)
    p = p / p.sum(-1, keepdim=True)
    # A token stays while the mass before it is below top_p, so the most likely always does.
    before = p.cumsum(-1) - p
    p = p.masked_fill((before >= column([s.top_p for s in samplings])) & (rank > 0), 0.0)
    cumulative = p.cumsum(-1)
    noise = [
        uniform(row.sampling.seed, row.choice, position)
        for row, position in zip(rows, positions, strict=True)
    ]
    drawn = torch.searchsorted(cumulative, column(noise) * cumulative[:, -1:])
    # Rounding must not step past the kept tokens, nor a row of NaN before the first.
    last = ((p > 0).sum(-1, keepdim=True) - 1).clamp_min(0)
    return ids.gather(1, torch.minimum(drawn, last)).squeeze(1).tolist()
