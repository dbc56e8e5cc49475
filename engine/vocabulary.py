"""A checkpoint's vocabulary as grammars see it: which tokens are text, and which text they are.

Every added token is a control token here: plain text never matches one, and one never matches text,
however the checkpoint flags it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray

TokenMask = NDArray[np.int32]
"""[ceil(vocab / 32)]: bit t % 32 of word t // 32 says whether token t may come next."""


class Vocabulary:
    """The tokens of one tokenizer.json; `size` is the model's, which may have more rows."""

    def __init__(self, file: Path, size: int, eos_token_ids: Iterable[int]) -> None:
        state = json.loads(file.read_text(encoding="utf-8"))
        for token in state["added_tokens"]:
            token["special"] = True
        self.size = size
        self.controls: dict[int, str] = {t["id"]: t["content"] for t in state["added_tokens"]}
        """Token id -> the text it is written as in a tokenizer's input."""
        self.tokenizer = LLTokenizer(
            json.dumps(state, ensure_ascii=False), n_vocab=size, eos_token=list(eos_token_ids)
        )
        known = (token for token in state["model"]["vocab"].values() if token < size)
        self.text_ids = sorted(set(known) - self.controls.keys())

    @cached_property
    def text(self) -> dict[int, bytes]:
        """Token id -> its bytes, of all that are text."""
        return {token: self.tokenizer.decode_bytes([token]) for token in self.text_ids}

    def mask(self, tokens: Iterable[int]) -> TokenMask:
        """Returns the mask that allows these tokens."""
        bits = np.zeros((self.size + 31) // 32 * 32, np.uint8)
        bits[list(tokens)] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)


class Opening:
    """What may come before a grammar that a control token starts: text, and that token.

    The token's text must not be spelled out by others: whoever reads the text would take it for
    the token itself. The tail is what a choice wrote last; it starts empty.
    """

    def __init__(self, vocabulary: Vocabulary, token: int) -> None:
        self._text = vocabulary.text
        self._spelling = vocabulary.controls.get(token, "").encode()
        self._mask = vocabulary.mask([*vocabulary.text_ids, token])
        # All at once: it takes a moment, which no step should have to wait for.
        self._completing = [
            vocabulary.mask(t for t, text in self._text.items() if text.startswith(rest))
            for rest in (self._spelling[spelled:] for spelled in range(1, len(self._spelling)))
        ]
        """By bytes spelled less one: the tokens that begin with all the others."""

    def follow(self, tail: bytes, token: int) -> bytes:
        """Returns the tail after one more token."""
        text = self._text.get(token)
        return b"" if text is None else (tail + text)[-len(self._spelling) :]

    def mask(self, tail: bytes) -> TokenMask:
        """Returns the mask of what may come behind a tail; not to be changed."""
        mask = self._mask
        for spelled, completing in enumerate(self._completing, start=1):
            if tail.endswith(self._spelling[:spelled]):
                mask = mask & ~completing
        return mask
