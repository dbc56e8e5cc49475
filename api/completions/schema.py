"""The completions dialect on the wire: the request, the answer, whole or in chunks.

Source: OpenAI API reference, "Completions", and the vLLM extensions of it.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from api import fields
from api.fields import TextFields
from api.response import PromptLogprobs, Usage

# --- request ----------------------------------------------------------------------------------


class CompletionsRequest(TextFields, frozen=True, kw_only=True):
    """Field names and types of `POST /v1/completions`."""

    prompt: str | list[str | int | list[int]]
    """A text, its token ids, or several of either kind: one kind per request."""

    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None

    # vLLM
    add_special_tokens: bool | None = None
    """Whether a text begins with the begin-of-sentence token; true when nothing is said."""


HARMLESS = frozenset({"user"})
"""Accepted without effect."""

REFUSED = fields.REFUSED | {"prompt_embeds", "suffix"}
"""Known, would change the answer, not honoured: 400 unless null, false or empty; 0 is a value."""

KNOWN = frozenset(CompletionsRequest.__struct_fields__)


# --- answer -----------------------------------------------------------------------------------


class TextLogprobs(msgspec.Struct, frozen=True):
    """Four lists of one length. A token that is no text by itself is written `bytes:\\xe2\\x80`."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """null: the first token of an echoed prompt has nothing before it."""
    top_logprobs: list[dict[str, float] | None]
    """The most likely tokens, and the sampled one."""
    text_offset: list[int]
    """Where each token's text begins in `text`, in characters."""


class TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    """index: that of the prompt, times n, plus that among the prompt's choices."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | UnsetType = UNSET
    """Extension of vLLM: the stop string that ended the text."""
    token_ids: list[int] | UnsetType = UNSET
    """Extension of vLLM: the sampled tokens, those that end included; in a chunk, the new ones."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """Extension of vLLM; of a stream in the first chunk of a choice."""
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    """Extension of vLLM; never streamed."""


class TextCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer, or one chunk of it: both have the same shape."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET
