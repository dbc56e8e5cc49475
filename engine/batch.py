"""One step's tokens as the model sees them: flat tensors, and groups of rows by attention form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config import PAGE_TOKENS
from scheduler.plan import Form


@dataclass(frozen=True)
class RowGroup:
    """Rows whose attention is computed together.

    Either one row of several tokens (B = 1), or several decode rows of one token each.
    """

    form: Form
    tokens: Tensor
    """[T'] int64: which of the step's tokens, row after row."""
    pages: Tensor
    """[B, P] int64, -1 beyond a sequence's end."""
    visible: Tensor
    """[T'] int64: query t may attend to positions below visible[t]."""
    slots: tuple[int, ...]
    """[B] the sequences' slots, for probes."""

    @property
    def shared_context(self) -> bool:
        """One sequence: its queries share the keys."""
        return self.pages.shape[0] == 1

    @property
    def context_tokens(self) -> int:
        """Positions covered by the pages, L."""
        return self.pages.shape[1] * PAGE_TOKENS

    def cache_slots(self, positions: Tensor) -> Tensor:
        """Returns the cache slots [T', K] of positions [T', K] or [1, L]; -1 stays -1."""
        known = positions.clamp_min(0)
        rows = self.pages.shape[0]
        page = self.pages.gather(1, (known // PAGE_TOKENS).view(rows, -1)).view(
            -1, positions.shape[1]
        )
        flat = page * PAGE_TOKENS + known % PAGE_TOKENS
        return torch.where((positions >= 0) & (page >= 0), flat, -1)


@dataclass(frozen=True)
class Batch:
    """All tokens of one step, row after row."""

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64, absolute in the sequence."""
    slots: Tensor
    """[T] int64: where each token's latent row and index key go."""
    groups: tuple[RowGroup, ...]
    sampled: Tensor
    """[S] int64: the tokens whose logits are wanted, in row order."""
