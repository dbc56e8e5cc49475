"""Log-probabilities in OpenAI's shape: token text, natural log, and the token's bytes.

A byte-level token is a run of bytes, often less than a character; its `bytes` are exact, its text
shows replacement characters where it is not UTF-8 by itself.
"""

from __future__ import annotations

import math

from api.chat.detokenizer import TokenBytes
from api.response import TokenLogprob, TopLogprob
from engine.messages import TokenLogprobs

FLOOR = -9999.0
"""OpenAI's value for "too unlikely"; JSON has no infinity."""


class LogprobWriter:
    """Turns the engine's log-probabilities into wire entries."""

    def __init__(self, token_bytes: TokenBytes, *, as_ids: bool = False) -> None:
        """as_ids: tokens are named `token_id:17`, as vLLM does for `return_tokens_as_token_ids`."""
        self._token_bytes, self._as_ids = token_bytes, as_ids

    def entry(self, token_id: int, logprobs: TokenLogprobs) -> TokenLogprob:
        """Returns the entry of one sampled token and the most likely ones beside it."""
        data = self._bytes_of(token_id)
        return TokenLogprob(
            token=self._name(token_id, data),
            logprob=_finite(logprobs.logprob),
            bytes=list(data),
            top_logprobs=[self._top(other, logprob) for other, logprob in logprobs.top],
        )

    def _top(self, token_id: int, logprob: float) -> TopLogprob:
        data = self._bytes_of(token_id)
        return TopLogprob(self._name(token_id, data), _finite(logprob), list(data))

    def _name(self, token_id: int, data: bytes) -> str:
        return f"token_id:{token_id}" if self._as_ids else data.decode(errors="replace")

    def _bytes_of(self, token_id: int) -> bytes:
        try:
            return self._token_bytes.of(token_id)
        except KeyError:
            # A model's vocabulary is often padded beyond its tokenizer's.
            return b""


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else FLOOR
