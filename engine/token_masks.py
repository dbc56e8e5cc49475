"""Which tokens the grammars of a step's rows allow, worked out while the model computes its logits.

pending = masks.begin(matchers)  # before the forward pass: a thread fills the masks
logits = model.forward(...)
allowed = pending.result()       # ready by then, or soon
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from llguidance import LLExecutor
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray
from torch import Tensor

from engine.grammar import Matcher, reason_of
from engine.transfer import brought

THREADS = 4
"""Masks of a step are filled beside the forward pass, which has the other cores."""

logger = logging.getLogger("winnow.engine")


@dataclass(frozen=True)
class AllowedTokens:
    """What may be sampled in the rows that a grammar constrains."""

    rows: list[int]
    """[G] places among the sampling rows."""
    tokens: Tensor
    """[G, vocab] bool. A row without any: its grammar cannot be followed further."""


class TokenMasks:
    """Fills masks on a thread of its own; one step at a time."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._thread = ThreadPoolExecutor(1, "token masks")
        self._executor: LLExecutor | None = None

    def begin(self, matchers: Sequence[Matcher | None]) -> Future[AllowedTokens] | None:
        """Starts on the masks of a step, one matcher per sampling row; None: none is needed."""
        rows = [i for i, matcher in enumerate(matchers) if matcher is not None and matcher.masks]
        if not rows:
            return None
        wanted = [matcher for matcher in matchers if matcher is not None and matcher.masks]
        return self._thread.submit(self._fill, rows, wanted)

    def _fill(self, rows: list[int], matchers: list[Matcher]) -> AllowedTokens:
        bits = np.zeros((len(rows), (self._vocab_size + 31) // 32), np.int32)
        parsing = []
        for place, matcher in enumerate(matchers):
            if matcher.started:
                parsing.append((matcher, place))
            elif (opening := matcher.opening_mask) is not None:
                bits[place] = opening
        self._parse([(m, place) for m, place in parsing if m.error is None], bits)
        for matcher, place in parsing:
            if matcher.error is None and matcher.parser.is_error():
                matcher.fail(matcher.parser.get_error())
            if matcher.error is not None:
                # The error itself quotes the answer, which no log should hold.
                logger.error("a grammar ended its choice: %s", matcher.parser.stop_reason())
                bits[place] = 0
        words = brought(torch.from_numpy(bits), self._device)
        return AllowedTokens(rows, unpack(words, self._vocab_size))

    def _parse(self, matchers: list[tuple[Matcher, int]], bits: NDArray[np.int32]) -> None:
        if self._executor is None:
            self._executor = LLExecutor(min(THREADS, os.cpu_count() or 1))
        try:
            parsers = [(matcher.parser, place) for matcher, place in matchers]
            fill_next_token_bitmask_par(self._executor, parsers, bits)
        except BaseException as failure:
            reason_of(failure)
            # Somebody's grammar broke the library. Find out whose: the others go on.
            for matcher, place in matchers:
                try:
                    fill_next_token_bitmask(matcher.parser, bits, place)
                except BaseException as error:
                    matcher.fail(reason_of(error))


def unpack(bits: Tensor, vocab_size: int) -> Tensor:
    """Returns masks [G, vocab] bool from their words [G, ceil(vocab / 32)] int32."""
    places = torch.arange(32, device=bits.device, dtype=torch.int32)
    return ((bits[:, :, None] >> places) & 1).bool().flatten(1)[:, :vocab_size]
