"""What a turn says of itself when it is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from engine.messages import Sampling

Operation = Literal["chat", "text_completion"]


class Ended(NamedTuple):
    """A request that is over, whatever its end was."""

    operation: Operation
    id: str
    model: str
    """The name it asked for."""
    sampling: Sampling
    stream: bool
    prompt_tokens: Sequence[int]
    """Of each prompt."""
    choices: Sequence[tuple[str | None, int]]
    """(finish reason, tokens) of each, None for one that did not end by itself."""
    cached_tokens: int
    reasoning_tokens: int
    restored_tokens: int
