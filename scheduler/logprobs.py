"""How likely the model found a token, as the engine measures it and clients are told."""

from __future__ import annotations

import msgspec


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probabilities before temperature and filters (vLLM's raw_logprobs)."""

    logprob: float
    top: list[tuple[int, float]]
    """(token id, logprob), most likely first."""
    rank: int = 0
    """The token's place by likelihood, 1 the first; 0: nobody asked."""
