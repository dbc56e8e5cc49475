"""Which form a row's attention takes, and where the forms break even."""

from __future__ import annotations

from typing import Literal

import msgspec

from scheduler.plan import Form

EVERY_TOKEN = 2**62
"""Longer than any sequence."""


class FormPolicy(msgspec.Struct, frozen=True):
    """Chooses `Row.form`; per row, so that one long request never slows or speeds a short one."""

    attention: Literal["auto", "sparse", "dense"]
    """auto chooses by cost; sparse always scores and selects; dense never does."""
    top_k: int
    """Tokens the indexer keeps per query."""
    break_even_tokens: int
    """Context up to which masked MHA is cheaper than absorbed MQA for prefill."""

    @property
    def unscored_tokens(self) -> int:
        """Context up to which rows need no index scores."""
        if self.attention == "auto":
            return self.top_k
        return 0 if self.attention == "sparse" else EVERY_TOKEN

    @property
    def selected_tokens(self) -> int:
        """Tokens of a context that a query attends to at most."""
        return EVERY_TOKEN if self.attention == "dense" else self.top_k

    def form(self, start: int, count: int) -> Form:
        """Returns the form for `count` tokens from position `start`.

        Within top_k tokens every query selects its whole prefix, so the scores change nothing.
        """
        context = start + count
        decode = count == 1 and start > 0
        if self.attention == "dense" or (self.attention == "auto" and context <= self.top_k):
            return "dense_mqa" if decode else "mha"
        if decode or context > self.break_even_tokens:
            return "mqa"
        return "masked_mha"


def break_even_tokens(
    *, top_k: int, kv_lora_rank: int, qk_rope: int, qk_nope: int, v_head: int
) -> int:
    """Returns the position where expanded attention over the whole context costs as much as
    absorbed attention over top_k latents, in multiply-adds per head: 6,963 for DeepSeek-V3.2.

    absorbed: top_k * (2 C + R)        expanded: L * (N + R + V)
    """
    return top_k * (2 * kv_lora_rank + qk_rope) // (qk_nope + qk_rope + v_head)
