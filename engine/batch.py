"""One step's tokens as the model sees them: flat tensors, and groups of rows by attention form."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from engine.config import PAGE_TOKENS
from scheduler.plan import Form


@dataclass(frozen=True)
class KernelRows:
    """A group's rows as the CUDA kernels read them: int32, on the device, made once a step.

    B sequences, each with its next tokens, in their order.
    """

    tokens: slice | Tensor
    """Which of the step's tokens: T' neighbours, or their places [T'] int64."""
    page_tables: Tensor
    """[B, P] int32; what stands behind a sequence's last page is never read."""
    visible: Tensor
    """[T'] int32: query t sees that many positions; 0 in a row that pads a batch."""
    longest: int
    """No row sees more."""
    prefill: PrefillRows | None = None
    """None: one token of every sequence."""


@dataclass(frozen=True)
class PrefillRows:
    """What several tokens of a sequence add: their keys stand end to end, sequence by sequence."""

    query_starts: Tensor
    """[B + 1] int32: where each sequence's queries begin, and T'."""
    key_starts: Tensor
    """[B + 1] int32: where each sequence's visible keys begin, and their number S."""
    requests: Tensor
    """[T'] int32: the sequence of each query."""
    first_keys: Tensor
    """[T'] int32: where the keys of the query's sequence begin."""
    last_keys: Tensor
    """[T'] int32: first_keys + visible."""
    context_slots: Tensor
    """[S] int64: the cache slot of each key."""
    most_queries: int
    """Of one sequence."""

    @classmethod
    def of(
        cls,
        page_tables: Tensor,
        visible: Tensor,
        both: Tensor,
        counts: list[int],
        contexts: list[int],
    ) -> PrefillRows:
        """Sequences of `counts` queries each, the last of which sees `contexts` positions.

        both [2, B] int32: the same two on the device. Nothing waits for the device.
        """
        device, sequences, keys = visible.device, len(counts), sum(contexts)
        starts = torch.nn.functional.pad(both.cumsum(1, dtype=torch.int32), (1, 0))
        order = torch.arange(sequences, dtype=torch.int32, device=device)
        requests = order.repeat_interleave(both[0], output_size=sum(counts))
        owners = order.repeat_interleave(both[1], output_size=keys)
        first_keys = starts[1].index_select(0, requests)
        places = torch.arange(keys, device=device) - starts[1].index_select(0, owners)
        pages = page_tables[owners.long(), places // PAGE_TOKENS]
        return cls(
            # Copies begin at addresses that kernels were compiled for; a slice may not.
            query_starts=starts[0].clone(),
            key_starts=starts[1].clone(),
            requests=requests,
            first_keys=first_keys,
            last_keys=first_keys + visible,
            context_slots=pages.long() * PAGE_TOKENS + places % PAGE_TOKENS,
            most_queries=max(counts),
        )


@dataclass(frozen=True)
class RowGroup:
    """Rows whose attention is computed together.

    Either one row of several tokens (B = 1), or several decode rows of one token each.
    """

    form: Form
    tokens: Tensor
    """[T'] int64: which of the step's tokens, row after row, ascending."""
    pages: Tensor
    """[B, P] int64; what stands beyond a sequence's last visible position is never read."""
    visible: Tensor
    """[T'] int64: query t may attend to positions below visible[t]."""
    slots: tuple[int, ...]
    """[B] the sequences' slots, for probes."""
    bounds: tuple[int, int] | None = None
    """Smallest and largest of `visible`, on the host; None: read from the tensor when needed."""
    staged: KernelRows | None = None
    """The same rows for kernels, where whoever made the group had them."""
    _tables: dict[int, tuple[Tensor, bool]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def shared_context(self) -> bool:
        """One sequence: its queries share the keys."""
        return self.pages.shape[0] == 1

    @property
    def shortest(self) -> int:
        return int(self.visible.min()) if self.bounds is None else self.bounds[0]

    @property
    def longest(self) -> int:
        return int(self.visible.max()) if self.bounds is None else self.bounds[1]

    @cached_property
    def kernel_rows(self) -> KernelRows:
        """The group as kernels read it; layers share it."""
        if self.staged is not None:
            return self.staged
        tables, visible = self.pages.int(), self.visible.int()
        prefill = None
        if self.tokens.shape[0] > self.pages.shape[0]:
            counts, contexts = [self.tokens.shape[0]], [self.longest]
            both = torch.tensor([counts, contexts], dtype=torch.int32, device=visible.device)
            prefill = PrefillRows.of(tables, visible, both, counts, contexts)
        return KernelRows(self.tokens, tables, visible, self.longest, prefill)

    def leading_slots(self, width: int) -> tuple[Tensor, bool]:
        """Returns the cache slots [T', width] of positions 0 to width - 1, -1 where not visible,
        and whether all are visible. Layers share the result."""
        if width not in self._tables:
            table = self._slot_table()
            every = torch.arange(width, device=table.device)
            if width > table.shape[1]:
                beyond = width - table.shape[1]
                table = torch.nn.functional.pad(table, (0, beyond), value=-1)
            complete = self.shortest >= width
            slots = table[:, :width].expand(self.visible.shape[0], -1)
            if not complete:
                slots = torch.where(every < self.visible[:, None], slots, -1)
            self._tables[width] = slots, complete
        return self._tables[width]

    def context_slots(self, width: int) -> Tensor:
        """Returns the cache slots [width] of the first positions of a shared context."""
        return self._slot_table()[0, :width]

    def cache_slots(self, positions: Tensor, *, complete: bool = False) -> Tensor:
        """Returns the cache slots [T', K] of positions [T', K]; -1 stays -1.

        complete: no position is -1.
        """
        table = self._slot_table()
        known = positions if complete else positions.clamp_min(0)
        if self.shared_context:
            slots = table[0].index_select(0, known.flatten()).view(positions.shape)
        else:
            slots = table.gather(1, known)
        return slots if complete else torch.where(positions >= 0, slots, -1)

    def _slot_table(self) -> Tensor:
        """[B, P * page tokens]: the cache slot of every position."""
        if 0 not in self._tables:
            offsets = torch.arange(PAGE_TOKENS, device=self.pages.device)
            table = (self.pages[:, :, None] * PAGE_TOKENS + offsets).flatten(1)
            self._tables[0] = table, False
        return self._tables[0][0]


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
    padded: bool = False
    """Tokens with slot -1 fill the batch up: they are computed, and written nowhere."""


class PageTable:
    """Page ids of every slot as one tensor, kept up to date page by page."""

    def __init__(self, device: torch.device) -> None:
        self.table = torch.full((1, 1), -1, dtype=torch.int64, device=device)

    def append(self, slot: int, first: int, pages: list[int]) -> None:
        """Notes that the slot's pages from index `first` on are `pages`."""
        rows, columns = self.table.shape
        end = first + len(pages)
        if slot >= rows or end > columns:
            # Twice as large as needed, so that sequences that grow page by page seldom copy.
            size = (max(rows, 2 * (slot + 1)), max(columns, 2 * end))
            larger = self.table.new_full(size, -1)
            larger[:rows, :columns] = self.table
            self.table = larger
        self.table[slot, first:end] = torch.tensor(pages, device=self.table.device)

    def rows(self, slots: Tensor, pages: int) -> Tensor:
        """Returns the first `pages` page ids [B, pages] of slots [B]."""
        return self.table[:, :pages].index_select(0, slots)
