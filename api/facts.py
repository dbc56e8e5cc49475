"""What a server knows of its model, and a request is checked against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from api.profiles import PROFILES, ModelProfile
from engine.client import GenerationDefaults


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a request is checked against."""

    names: tuple[str, ...]
    """Names clients may use; the first is the one answers carry."""
    vocab_size: int
    max_model_len: int
    defaults: GenerationDefaults
    end_token_ids: tuple[int, ...]
    """Tokens that end an answer: end of sentence, and role tokens, which never belong in one."""
    call_token_ids: tuple[int, ...]
    """Tokens no tool call can be written without."""
    thinking: bool = False
    """Whether the model reasons when a request does not say."""
    profile: ModelProfile = PROFILES["v3.2"]
    """What the model can do."""
    max_reasoning_tokens: int | None = None
    """Reasoning tokens after which any answer begins; None: no limit."""
    shows_schemas: bool = True
    """Whether its prompt format has a place for the schema of an answer."""
    encode_text: Callable[[str], Sequence[int]] | None = None
    """Text -> token ids, for requests that name words."""
