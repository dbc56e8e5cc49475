"""The retention rule: which reasoning a prompt keeps, and what that means for its tokens.

A new user message drops the reasoning of every assistant message before it. Tool results do not:
while only tool calls and their results follow, the reasoning of the running turn stays. Tool
calls, tool results and answers are always kept.

Source: DeepSeek-V3.2 report, section 3.2.1 ("Thinking Context Management").
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

SpanKind = Literal["stable", "reasoning", "tool", "answer"]


class Span(msgspec.Struct, frozen=True):
    """A half-open range of tokens ``[start, end)``, absolute in the sequence, and what it holds.

    ``stable`` tokens stand before the flip point: their cached form survives a new user message.
    ``reasoning``, ``tool`` and ``answer`` tokens stand after it. The next user message drops the
    reasoning, and re-encodes the tool traffic and the answer without it.
    """

    start: int
    end: int
    kind: SpanKind


def last_user_index(roles: Sequence[str]) -> int:
    """Returns the index of the last message from the user, -1 when there is none.

    A ``developer`` message that is rendered as a user turn counts as one.
    Source: DeepSeek-V3.2 report, section 3.2.1.
    """
    for index in range(len(roles) - 1, -1, -1):
        if roles[index] in ("user", "developer"):
            return index
    return -1


def keeps_reasoning(index: int, last_user: int, thinking: bool) -> bool:
    """Returns whether the assistant message at ``index`` is rendered with its reasoning.

    ``last_user`` is the result of :func:`last_user_index`; without a user message (-1) all
    reasoning is kept. In chat mode (``thinking`` false) none is.
    Source: DeepSeek-V3.2 report, section 3.2.1.
    """
    return thinking and index > last_user


def flip_point(spans: Iterable[Span]) -> int:
    """Returns the token position up to which the next user message leaves the sequence as it is.

    It is the start of the first span that is not ``stable``, or the end of the last span when all
    of them are (chat mode only ever appends). ``spans`` are in order and without gaps.
    """
    end_tokens = 0
    for span in spans:
        if span.kind != "stable":
            return span.start
        end_tokens = span.end
    return end_tokens
