"""What requests ask for beside temperature and filters, done to the logits of a whole step.

In this order: what may come at all, penalties, biases, tokens that may not come yet. Each kind is a
few operators over all rows that have it. What a request brings lies on the device with its slot
(`engine.sampler_state`), so a step moves no more than which rows have what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.sampler_state import SamplerState, SlotTensors
from engine.transfer import brought

_Found = tuple[int, SlotTensors]
"""The place of a row, and what it brings."""
_Asks = Callable[[SamplerState], bool]


class _Entries(NamedTuple):
    """Token ids of several rows, one after another."""

    rows: Tensor
    """[R] int64: places of the rows in the logits."""
    owner: Tensor
    """[E] int64: which of `rows` each entry belongs to."""
    at: Tensor
    """[E] int64: its place in the logits."""
    ids: Tensor
    """[E] int64: its token."""

    @classmethod
    def of(cls, found: Sequence[tuple[int, Tensor]]) -> _Entries:
        """found: (place of a row, its token ids), at least one."""
        places = [place for place, _ in found]
        counts = [len(ids) for _, ids in found]
        both = brought(torch.tensor([places, counts]), found[0][1].device)
        order = torch.arange(len(found), device=both.device)
        owner = order.repeat_interleave(both[1], output_size=sum(counts))
        return cls(both[0], owner, both[0][owner], torch.cat([ids for _, ids in found]))


def restrict(logits: Tensor, rows: Sequence[SamplerState]) -> None:
    """Leaves only the tokens that the requests' own limits allow, in place.

    logits [S, vocab] float32, one line per row.
    """
    only: list[tuple[int, Tensor]] = []
    never: list[tuple[int, Tensor]] = []
    completed: list[tuple[int, int]] = []
    for place, row in enumerate(rows):
        if not row.restricted:
            continue
        tensors = row.tensors(logits)
        kept = tensors.ends_reasoning if row.must_end_reasoning else tensors.only
        if kept is not None:
            only.append((place, kept))
        if tensors.never is not None:
            never.append((place, tensors.never))
        completed += ((place, token) for token in row.bad_tokens())
    if only:
        entries = _Entries.of(only)
        kept = logits[entries.at, entries.ids]
        logits[entries.rows] = -torch.inf
        logits[entries.at, entries.ids] = kept
    if never:
        entries = _Entries.of(never)
        logits[entries.at, entries.ids] = -torch.inf
    if completed:
        at, ids = brought(torch.tensor(completed), logits.device).T
        logits[at, ids] = -torch.inf


def adjust(logits: Tensor, rows: Sequence[SamplerState], restricted: Sequence[bool]) -> None:
    """Penalties, biases and tokens that may not come yet, in place.

    logits [S, vocab] float32, one line per row; restricted: whether not every token was allowed
    before.
    """
    _penalise(logits, rows)
    biased = [
        (place, tensors.biased, tensors.biases)
        for place, tensors in _having(logits, rows, lambda row: bool(row.sampling.logit_bias))
        if tensors.biased is not None and tensors.biases is not None
    ]
    if biased:
        entries = _Entries.of([(place, ids) for place, ids, _ in biased])
        logits[entries.at, entries.ids] += torch.cat([values for _, _, values in biased])
    stops = [
        (place, tensors.stops)
        for place, tensors in _having(logits, rows, lambda row: row.too_short_to_stop)
        if tensors.stops is not None
    ]
    if stops:
        _forbid_stops(logits, stops, [restricted[place] for place, _ in stops])


def _having(logits: Tensor, rows: Sequence[SamplerState], wanted: _Asks) -> list[_Found]:
    return [(place, row.tensors(logits)) for place, row in enumerate(rows) if wanted(row)]


def _penalise(logits: Tensor, rows: Sequence[SamplerState]) -> None:
    """Source: OpenAI's definition of the frequency and presence penalties (generated tokens only);
    CTRL (Keskar et al. 2019) for the repetition penalty (prompt and generated tokens)."""
    found = _having(logits, rows, lambda row: row.penalised)
    if not found:
        return
    samplings = [rows[place].sampling for place, _ in found]
    numbers = torch.tensor(
        [
            [float(place) for place, _ in found],
            [s.repetition_penalty for s in samplings],
            [s.frequency_penalty for s in samplings],
            [s.presence_penalty for s in samplings],
        ],
        dtype=torch.float64,
    )
    numbers = brought(numbers, logits.device)
    places = numbers[0].long()
    repetition, frequency, presence = numbers[1:].float()[:, :, None]
    counts = torch.stack([t.counts for _, t in found if t.counts is not None])
    lines = logits[places]
    repeated = [(i, t.in_prompt) for i, (_, t) in enumerate(found) if t.in_prompt is not None]
    if repeated:
        seen = counts > 0
        which = brought(torch.tensor([i for i, _ in repeated]), logits.device)
        seen[which] |= torch.stack([prompt for _, prompt in repeated])
        scaled = torch.where(lines > 0, lines / repetition, lines * repetition)
        lines = torch.where(seen & (repetition != 1.0), scaled, lines)
    if any(s.frequency_penalty or s.presence_penalty for s in samplings):
        taken = counts * frequency + presence
        lines = torch.where(counts > 0, lines - taken, lines)
    logits[places] = lines


def _forbid_stops(
    logits: Tensor, stops: Sequence[tuple[int, Tensor]], restricted: Sequence[bool]
) -> None:
    entries = _Entries.of(stops)
    ends = logits[entries.at, entries.ids]
    logits[entries.at, entries.ids] = -torch.inf
    if any(restricted):
        # Where a grammar has nothing more to say, an answer too short is better than none.
        dead = (logits[entries.rows] == -torch.inf).all(-1)
        dead &= brought(torch.tensor(restricted), logits.device)
        logits[entries.at, entries.ids] = torch.where(dead[entries.owner], ends, -torch.inf)
