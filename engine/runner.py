"""Executes step plans: mirrors of the scheduler's slots, batches, the model, the sampler.

plan -> mirrors -> batch -> logits -> tokens        no policy: the plan says what and how
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine.attention import Probe
from engine.batch import Batch, PageTable, RowGroup
from engine.cache import PagedCache
from engine.config import PAGE_TOKENS
from engine.grammar import Matcher, RunningGrammars
from engine.model import Network
from engine.sampler import NO_TOKEN, Draw, draw, logprobs_of, logprobs_of_known, sample
from engine.sampler_state import SamplerState
from engine.token_masks import TokenMasks
from engine.transfer import brought
from scheduler.logprobs import TokenLogprobs
from scheduler.plan import Row, StepPlan, StepResult

GATHER_TOKENS = 1 << 17
"""Padded context tokens that one group of decode rows may have."""
UNEVEN_TOKENS = 1 << 12
"""Up to so many, one group is cheaper than two, however unequal its rows are; beyond, a row joins
the longest of a group only if it is at least half as long."""


@dataclass
class SlotMirror:
    """What the engine keeps of one running sequence."""

    token_ids: list[int]
    pages: list[int]
    sampler: SamplerState
    matcher: Matcher | None = None


class FlatRows(NamedTuple):
    """A step's tokens on the host, row after row."""

    token_ids: list[int]
    positions: list[int]
    slots: list[int]
    """Where each token's latent row and index key go."""
    sampled: list[int]
    """The tokens whose logits are wanted, in row order."""
    first: list[int]
    """Each row's first token."""


class Runner:
    """Runs plans against one model and one cache."""

    def __init__(
        self,
        model: Network,
        cache: PagedCache,
        *,
        eos_token_ids: tuple[int, ...] = (),
        probe: Probe | None = None,
    ) -> None:
        self.model, self.cache = model, cache
        self.eos_token_ids = eos_token_ids
        self.probe = probe
        self.device = model.device
        self.slots: dict[int, SlotMirror] = {}
        self.page_table = PageTable(self.device)
        self.grammars = RunningGrammars()
        """What choices of running requests have to follow."""
        self._masks = TokenMasks(model.config.vocab_size, self.device)
        self.draw: Draw = draw
        self.logits: torch.Tensor | None = None
        """Logits [S, vocab] of the last step's sampling rows, for tests and benchmarks."""

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Returns the step's tokens; mirrors and cache advance.

        Order of effects: forget, new slots, new pages, page copies, then the rows. A row whose
        grammar allows no token samples NO_TOKEN.
        """
        begin = time.perf_counter()
        self._prepare(plan)
        tokens: list[int] = [-1] * len(plan.rows)
        logprobs: list[TokenLogprobs | None] = [None] * len(plan.rows)
        scores: dict[int, list[TokenLogprobs]] = {}
        if plan.rows:
            sampling = [i for i, row in enumerate(plan.rows) if self._samples(row)]
            mirrors = [self.slots[plan.rows[i].slot] for i in sampling]
            # Both need no more than the tokens known so far, so they overlap.
            masks = self._masks.begin([mirror.matcher for mirror in mirrors])
            if any(row.sample == "every" for row in plan.rows):
                self.logits, scores = self._compute_scores(plan.rows)
            else:
                self.logits = self.compute(plan.rows)
            positions = [plan.rows[i].start + plan.rows[i].count for i in sampling]
            states = [mirror.sampler for mirror in mirrors]
            allowed = masks.result() if masks is not None else None
            drawn: list[int] = []
            if sampling:
                drawn = sample(self.logits, states, positions, allowed, self.draw)
            for i, mirror, token in zip(sampling, mirrors, drawn, strict=True):
                tokens[i] = token
                if token == NO_TOKEN:
                    continue
                mirror.token_ids.append(token)
                if mirror.matcher is not None:
                    mirror.matcher.advance(token)
            wanted = [
                None if token == NO_TOKEN else state.sampling.logprobs
                for state, token in zip(states, drawn, strict=True)
            ]
            if any(top is not None for top in wanted):
                found = logprobs_of(self.logits, drawn, wanted)
                for i, line in zip(sampling, found, strict=True):
                    logprobs[i] = line
        return StepResult(plan.step, tokens, logprobs, time.perf_counter() - begin, scores)

    def compute(self, rows: tuple[Row, ...]) -> Tensor:
        """Returns the logits [S, vocab] of the rows that sample; the cache takes all rows in."""
        return self.model.forward(self.batch(rows), self.cache, self.probe)

    def _compute_scores(
        self, rows: tuple[Row, ...]
    ) -> tuple[Tensor, dict[int, list[TokenLogprobs]]]:
        """Returns what `compute` returns, and StepResult.prompt_logprobs."""
        hidden = self.model.hidden(self.batch(rows), self.cache, self.probe)
        sampled: list[int] = []
        scores: dict[int, list[TokenLogprobs]] = {}
        place = 0
        for i, row in enumerate(rows):
            end = place + wanted_logits(row)
            if row.sample == "every":
                mirror = self.slots[row.slot]
                known = mirror.token_ids[row.start + 1 : row.start + row.count + 1]
                top = mirror.sampler.sampling.prompt_logprobs or 0
                lines = hidden[place : place + len(known)]
                vocab_size = self.model.config.vocab_size
                scores[i] = logprobs_of_known(self.model.logits, lines, known, top, vocab_size)
            if self._samples(row):
                sampled.append(end - 1)
            place = end
        return self.model.logits(hidden.index_select(0, self._ints(sampled))), scores

    def _samples(self, row: Row) -> bool:
        """Whether a token is sampled behind the row."""
        if row.sample != "every":
            return row.sample == "last"
        return row.start + row.count == len(self.slots[row.slot].token_ids)

    def _prepare(self, plan: StepPlan) -> None:
        for slot in plan.forget:
            del self.slots[slot]
        for new in plan.prepare.new_slots:
            state = SamplerState.start(
                new.sampling, new.choice, new.token_ids, new.prompt_tokens, self.eos_token_ids
            )
            matcher = self.grammars.matcher(new.request_id, state.output_ids)
            self.slots[new.slot] = SlotMirror(list(new.token_ids), list(new.pages), state, matcher)
            self.page_table.append(new.slot, 0, self.slots[new.slot].pages)
        for slot, pages in plan.prepare.new_pages:
            self.page_table.append(slot, len(self.slots[slot].pages), list(pages))
            self.slots[slot].pages.extend(pages)
        if plan.prepare.copies:
            source, target = zip(*((m.source, m.target) for m in plan.prepare.copies), strict=True)
            self.cache.copy_pages(self._ints(source), self._ints(target))

    def _ints(self, values: Sequence[int]) -> Tensor:
        """The values [n] int64 on the device; does not wait for it."""
        return brought(torch.tensor(values, dtype=torch.int64), self.device)

    def _flat(self, rows: Sequence[Row]) -> FlatRows:
        """The tokens of the rows, one after another."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sampled: list[int] = []
        first: list[int] = []
        for row in rows:
            mirror = self.slots[row.slot]
            start, end = row.start, row.start + row.count
            first.append(len(token_ids))
            if row.count == 1:
                token_ids.append(mirror.token_ids[start])
                positions.append(start)
                slots.append(mirror.pages[start // PAGE_TOKENS] * PAGE_TOKENS + start % PAGE_TOKENS)
            else:
                token_ids += mirror.token_ids[start:end]
                positions += range(start, end)
                for page in range(start // PAGE_TOKENS, (end - 1) // PAGE_TOKENS + 1):
                    shift = (mirror.pages[page] - page) * PAGE_TOKENS
                    begin = max(start, page * PAGE_TOKENS) + shift
                    slots += range(begin, min(end, (page + 1) * PAGE_TOKENS) + shift)
            if row.sample != "none":
                sampled += range(len(token_ids) - wanted_logits(row), len(token_ids))
        return FlatRows(token_ids, positions, slots, sampled, first)

    def batch(self, rows: tuple[Row, ...]) -> Batch:
        """Returns the rows as a batch, its integers on their way to the device."""
        token_ids, positions, slots, sampled, first = self._flat(rows)
        # One tensor for all: the cost of making one hardly depends on its length.
        count = len(token_ids)
        every = self._ints(token_ids + positions + slots + sampled)
        flat = every[:count], every[count : 2 * count], every[2 * count : 3 * count]
        groups = [self._group(indices, rows, first, flat[1]) for indices in _grouped(rows)]
        return Batch(*flat, tuple(groups), every[3 * count :])

    def _group(
        self, indices: list[int], rows: tuple[Row, ...], first: list[int], positions: Tensor
    ) -> RowGroup:
        """The rows `indices` as one group; positions [T] of the whole step."""
        members = [rows[i] for i in indices]
        slots = tuple(row.slot for row in members)
        longest = max(row.start + row.count for row in members)
        used = -(-longest // PAGE_TOKENS)
        if len(members) == 1:
            (row,) = members
            tokens = torch.arange(
                first[indices[0]], first[indices[0]] + row.count, device=self.device
            )
            pages = self.page_table.table[row.slot : row.slot + 1, :used]
        else:
            tokens = self._ints([first[i] for i in indices])
            pages = self.page_table.rows(self._ints(slots), used)
        return RowGroup(
            members[0].form,
            tokens,
            pages,
            (positions if len(members) == len(rows) else positions[tokens]) + 1,
            slots,
            bounds=(min(row.start for row in members) + 1, longest),
        )


def wanted_logits(row: Row) -> int:
    """Returns how many of a row's tokens, its last ones, have their logits looked at."""
    return {"none": 0, "last": 1, "every": row.count}[row.sample]


def _grouped(rows: tuple[Row, ...]) -> Iterator[list[int]]:
    """Each prefill row by itself; decode rows of one form together, padded to the longest."""
    decodes: dict[str, list[int]] = {"mqa": [], "dense_mqa": []}
    for i, row in enumerate(rows):
        if row.count == 1 and row.form in decodes:
            decodes[row.form].append(i)
        else:
            yield [i]
    for indices in decodes.values():
        indices.sort(key=lambda i: rows[i].start, reverse=True)
        while indices:
            longest = rows[indices[0]].start + 1
            width = 1
            while width < len(indices):
                uneven = 2 * rows[indices[width]].start < longest
                if (width + 1) * longest > (UNEVEN_TOKENS if uneven else GATHER_TOKENS):
                    break
                width += 1
            yield sorted(indices[:width])
            indices = indices[width:]
