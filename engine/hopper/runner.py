"""Executes step plans with the kernels: integers in one copy, decode steps as graphs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from engine.batch import Batch, KernelRows, PrefillRows, RowGroup
from engine.cache import PagedCache
from engine.config import PAGE_TOKENS
from engine.hopper.attention import SCORING
from engine.hopper.graphs import Bucket, DecodeGraphs, padded
from engine.hopper.sampler import StagedDraws
from engine.hopper.staging import StagedPageTable, Staging
from engine.model import Network
from engine.runner import Runner, wanted_logits
from engine.sampler import packed, packed_length
from scheduler.plan import Row

ALIGNED = 2
"""Integers of 8 bytes: kernels are compiled for what begins at 16 bytes' steps, and anew for what
does not."""


class HopperRunner(Runner):
    """Runs plans against one model of the kernels and one cache.

    A step's tokens are put in the order of their groups, so that each group is a stretch of them.
    """

    def __init__(
        self,
        model: Network,
        cache: PagedCache,
        *,
        eos_token_ids: tuple[int, ...] = (),
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
    ) -> None:
        super().__init__(model, cache, eos_token_ids=eos_token_ids)
        pages = -(-max_model_len // PAGE_TOKENS)
        self.page_table = self._table = StagedPageTable(max_num_seqs, pages, self.device)
        # A token has three integers, four where its logits are wanted, a row up to four more and
        # its draw's, and every page may be new.
        tokens = max(max_num_batched_tokens, max_num_seqs)
        columns = 4 * tokens + 4 * max_num_seqs + 7 * ALIGNED
        capacity = columns + packed_length(max_num_seqs) + 2 * self._table.table.numel()
        self._staging = Staging(self.device, capacity)
        self.draw = self._draws = StagedDraws()
        self.graphs: DecodeGraphs | None = None

    def capture(self, wanted: Sequence[Bucket], *, progress: bool = True) -> None:
        """Captures graphs for these buckets; from then on decode steps that fit take them."""
        integers, table = self._staging.integers, self._table.table
        graphs = DecodeGraphs(self.model, self.cache, integers, table, wanted)
        graphs.capture(progress=progress)
        self.graphs = graphs

    def compute(self, rows: tuple[Row, ...]) -> Tensor:
        """Returns the logits [S, vocab] of the rows that sample; the cache takes all rows in."""
        bucket = self.graphs.find(rows) if self.graphs and self.probe is None else None
        if bucket is None or self.graphs is None:
            return super().compute(rows)
        self.send_decode(bucket, rows)
        logits = self.graphs.replay(bucket)
        sampling = [i for i, row in enumerate(rows) if row.sample == "last"]
        if len(sampling) == len(rows):
            return logits[: len(rows)]
        return logits.index_select(0, self._ints(sampling))

    def send_decode(self, bucket: Bucket, rows: Sequence[Row]) -> Tensor:
        """Brings the integers of decode rows to the device, filled up; returns them all."""
        flat = self._flat(rows)
        slots = [row.slot for row in rows]
        return self._send(padded(bucket, (flat.token_ids, flat.positions, flat.slots, slots)), rows)

    def batch(self, rows: tuple[Row, ...]) -> Batch:
        """Returns the rows as a batch, its integers on their way to the device."""
        groups = grouped(rows)
        ordered = [rows[i] for group in groups for i in group]
        flat = self._flat(ordered)
        # Logits are wanted in the order of the plan.
        last = dict(zip((i for group in groups for i in group), _ends(ordered), strict=True))
        sampled = [
            place
            for i, row in enumerate(rows)
            for place in range(last[i] + 1 - wanted_logits(row), last[i] + 1)
        ]
        integers, spans = side_by_side(
            flat.token_ids,
            flat.positions,
            flat.slots,
            sampled,
            [row.slot for row in ordered],
            [row.count for row in ordered],
            [row.start + row.count for row in ordered],
        )
        sent = self._send(integers, rows)
        token_ids, positions, slots, wanted, places, counts, contexts = (sent[s] for s in spans)
        visible = (positions + 1).int()
        both = torch.stack((counts, contexts)).int()
        made, row, token = [], 0, 0
        for group in groups:
            members = [rows[i] for i in group]
            some = slice(row, row + len(members))
            tokens = slice(token, token + sum(member.count for member in members))
            made.append(self._row_group(members, tokens, places[some], visible, both[:, some]))
            row, token = some.stop, tokens.stop
        return Batch(token_ids, positions, slots, tuple(made), wanted)

    def _send(self, integers: list[int], rows: Sequence[Row]) -> Tensor:
        """Brings a step's integers to the device, and behind them what the draws of its rows take
        and what is new in the page table; returns them all."""
        sampling = [row for row in rows if self._samples(row)]
        states = [self.slots[row.slot].sampler for row in sampling]
        settings = packed(states, [row.start + row.count for row in sampling])
        front, (_, drawing) = side_by_side(integers, settings)
        # Into the memory of the step before, whose kernels lie before this copy in the stream.
        sent = self._staging.send(front + self._table.news())
        self._table.apply(sent[len(front) :])
        self._draws.arrived(sent[drawing], len(sampling))
        return sent

    def _row_group(
        self,
        members: list[Row],
        tokens: slice,
        places: Tensor,
        visible: Tensor,
        both: Tensor,
    ) -> RowGroup:
        """A group of rows whose slots are `places` [B]; visible [T] of the whole step."""
        contexts = [row.start + row.count for row in members]
        longest = max(contexts)
        tables = self._table.table[:, : -(-longest // PAGE_TOKENS)].index_select(0, places)
        seen = visible[tokens].clone()  # a slice may not begin where kernels expect it
        prefill = None
        if any(row.count > 1 for row in members):
            counts = [row.count for row in members]
            prefill = PrefillRows.of(tables, seen, both, counts, contexts)
        kernel_rows = KernelRows(tokens, tables, seen, longest, prefill)
        return RowGroup(
            members[0].form,
            torch.arange(tokens.start, tokens.stop, device=self.device),
            tables,
            seen.long(),
            tuple(row.slot for row in members),
            (min(row.start for row in members) + 1, longest),
            kernel_rows,
        )


def side_by_side(*columns: Sequence[int]) -> tuple[list[int], list[slice]]:
    """Returns the columns as one, each begun at a multiple of ALIGNED, and where each stands."""
    integers: list[int] = []
    spans = []
    for column in columns:
        integers += [0] * (-len(integers) % ALIGNED)
        spans.append(slice(len(integers), len(integers) + len(column)))
        integers += column
    return integers, spans


def grouped(rows: Sequence[Row]) -> list[list[int]]:
    """Returns which rows are computed together: prefill that scores one by one, since its scores
    are a matrix of all its tokens and its own context; the others of a form together."""
    together: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        alone = row.form in SCORING and row.count > 1
        key = f"{row.form} {i}" if alone else f"{row.form} {row.count > 1}"
        together.setdefault(key, []).append(i)
    return list(together.values())


def _ends(rows: Sequence[Row]) -> list[int]:
    """The last token of each row."""
    return [end - 1 for end in accumulate(row.count for row in rows)]
