"""Draws by the kernel: one launch for all rows of a step, whose settings came with its integers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.sampler import packed, unpacked
from engine.sampler_state import SamplerState
from engine.transfer import brought
from kernels.hopper.sampling import sample
from scheduler.request import Sampling


class StagedDraws:
    """What rows ask of their draws is known before their logits are: it is `arrived` by then."""

    def __init__(self) -> None:
        self._settings: tuple[Tensor, ...] = ()
        self._rows = 0

    def arrived(self, settings: Tensor, rows: int) -> None:
        """Takes in what the next draws take: `packed` integers [n] int64 on the device."""
        self._settings, self._rows = unpacked(settings, rows), rows

    def __call__(
        self, logits: Tensor, rows: Sequence[SamplerState], positions: Sequence[int]
    ) -> Tensor:
        """Returns one token per row [S] int64 and does not wait for the device.

        logits [S, vocab] float32, in the order of the rows that arrived. Raises ValueError for
        another number of rows.
        """
        if len(rows) != self._rows:
            raise ValueError(f"settings of {self._rows} rows arrived; {len(rows)} rows are drawn")
        return sample(logits, *self._settings)


def draw(logits: Tensor, rows: Sequence[SamplerState], positions: Sequence[int]) -> Tensor:
    """Returns one token per row [S] int64, of settings that did not come with a step."""
    settings = brought(torch.tensor(packed(rows, positions)), logits.device)
    return sample(logits, *unpacked(settings, len(rows)))


def compile_draws(vocab_size: int, device: torch.device) -> None:
    """Draws for one row: the kernel is the same for every number of rows and all settings."""
    row = SamplerState.start(Sampling(max_tokens=1), 0, [], 0, ())
    draw(torch.zeros(1, vocab_size, device=device), [row], [0])
