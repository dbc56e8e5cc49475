"""Log-probabilities in OpenAI's shape: token text, natural log, and the token's bytes.

A byte-level token is a run of bytes, often less than a character; its `bytes` are exact, its text
shows replacement characters where it is not UTF-8 by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from api.chat.detokenizer import TokenBytes
from api.errors import invalid
from api.response import PromptLogprob, PromptLogprobs, TokenLogprob, TopLogprob
from engine.messages import TokenLogprobs

MAX_PROMPT_ENTRIES = 2**18
"""Log-probabilities of prompt tokens in one answer: a window of 131,072 tokens, with the most
likely token beside each. They are held by engine and server until the answer begins."""
FLOOR = -9999.0
"""OpenAI's value for "too unlikely"; JSON has no infinity."""


def check_prompt_entries(tokens: int, top: int, param: str) -> None:
    """Changes nothing; raises ApiError(400) naming `param` where an answer would say too much of
    its prompts' tokens, `top` of the most likely ones beside each."""
    entries = tokens * (top + 1)
    if entries > MAX_PROMPT_ENTRIES:
        raise invalid(
            f"The answer would hold {entries} log-probabilities of prompt tokens; the limit is "
            f"{MAX_PROMPT_ENTRIES}.",
            param,
        )


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

    def prompt(
        self, token_ids: Sequence[int], found: Sequence[TokenLogprobs], top: int
    ) -> PromptLogprobs:
        """Returns what is said of a prompt's tokens, with the `top` most likely ones beside each.

        found: of every token but the first.
        """
        entries: PromptLogprobs = [None]
        for token_id, logprobs in zip(token_ids[1:], found, strict=True):
            entry = {str(token_id): self._of_prompt(token_id, logprobs.logprob, logprobs.rank)}
            for place, (other, logprob) in enumerate(logprobs.top[:top], 1):
                if other != token_id:
                    entry[str(other)] = self._of_prompt(other, logprob, place)
            entries.append(entry)
        return entries

    def _of_prompt(self, token_id: int, logprob: float, rank: int) -> PromptLogprob:
        text = self._bytes_of(token_id).decode(errors="replace")
        return PromptLogprob(_finite(logprob), rank, text)

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
