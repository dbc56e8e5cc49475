"""Executes step plans: mirrors of the scheduler's slots, batches, the model, the sampler.

plan -> mirrors -> batch -> logits -> tokens        no policy: the plan says what and how
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from engine.attention import Probe
from engine.batch import Batch, RowGroup
from engine.cache import PagedCache
from engine.config import PAGE_TOKENS
from engine.model import DeepseekV32
from engine.sampler import SamplerState, logprobs_of, sample
from scheduler.plan import Row, StepPlan, StepResult, TokenLogprobs

GATHER_TOKENS = 1 << 17
"""Padded context tokens whose index keys one group of decode rows may gather at once."""


@dataclass
class SlotMirror:
    """What the engine keeps of one running sequence."""

    token_ids: list[int]
    pages: list[int]
    sampler: SamplerState


class Runner:
    """Runs plans against one model and one cache."""

    def __init__(
        self,
        model: DeepseekV32,
        cache: PagedCache,
        *,
        eos_token_ids: tuple[int, ...] = (),
        probe: Probe | None = None,
    ) -> None:
        self.model, self.cache = model, cache
        self.eos_token_ids = eos_token_ids
        self.probe = probe
        self.device = model.head.device
        self.slots: dict[int, SlotMirror] = {}
        self.logits: torch.Tensor | None = None
        """Logits [S, vocab] of the last step's sampling rows, for tests and benchmarks."""

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Returns the step's tokens; mirrors and cache advance.

        Order of effects: forget, new slots, new pages, page copies, then the rows.
        """
        begin = time.perf_counter()
        self._prepare(plan)
        tokens: list[int] = [-1] * len(plan.rows)
        logprobs: list[TokenLogprobs | None] = [None] * len(plan.rows)
        if plan.rows:
            batch = self._batch(plan.rows)
            logits = self.model.forward(batch, self.cache, self.probe)
            self.logits = logits
            sampling = [i for i, row in enumerate(plan.rows) if row.sample == "last"]
            mirrors = [self.slots[plan.rows[i].slot] for i in sampling]
            positions = [plan.rows[i].start + plan.rows[i].count for i in sampling]
            drawn = sample(logits, [m.sampler for m in mirrors], positions)
            for line, i, mirror, token in zip(logits, sampling, mirrors, drawn, strict=True):
                mirror.token_ids.append(token)
                tokens[i] = token
                top = mirror.sampler.sampling.logprobs
                if top is not None:
                    logprobs[i] = logprobs_of(line, token, top)
        return StepResult(plan.step, tokens, logprobs, time.perf_counter() - begin)

    def _prepare(self, plan: StepPlan) -> None:
        for slot in plan.forget:
            del self.slots[slot]
        for new in plan.prepare.new_slots:
            state = SamplerState.start(
                new.sampling, new.choice, new.token_ids, new.prompt_tokens, self.eos_token_ids
            )
            self.slots[new.slot] = SlotMirror(list(new.token_ids), list(new.pages), state)
        for slot, pages in plan.prepare.new_pages:
            self.slots[slot].pages.extend(pages)
        if plan.prepare.copies:
            source, target = zip(*((m.source, m.target) for m in plan.prepare.copies), strict=True)
            self.cache.copy_pages(self._ints(source), self._ints(target))

    def _ints(self, values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def _batch(self, rows: tuple[Row, ...]) -> Batch:
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sampled: list[int] = []
        first: list[int] = []
        for row in rows:
            mirror = self.slots[row.slot]
            end = row.start + row.count
            first.append(len(token_ids))
            token_ids += mirror.token_ids[row.start : end]
            positions += range(row.start, end)
            slots += [
                mirror.pages[p // PAGE_TOKENS] * PAGE_TOKENS + p % PAGE_TOKENS
                for p in range(row.start, end)
            ]
            if row.sample == "last":
                sampled.append(len(token_ids) - 1)
        return Batch(
            self._ints(token_ids),
            self._ints(positions),
            self._ints(slots),
            tuple(self._groups(rows, first)),
            self._ints(sampled),
        )

    def _groups(self, rows: tuple[Row, ...], first: list[int]) -> list[RowGroup]:
        """Each prefill row by itself; decode rows of one form together, padded to the longest."""
        groups = []
        decodes: dict[str, list[int]] = {"mqa": [], "dense_mqa": []}
        for i, row in enumerate(rows):
            if row.count == 1 and row.form in decodes:
                decodes[row.form].append(i)
            else:
                groups.append(self._group([i], rows, first))
        for indices in decodes.values():
            indices.sort(key=lambda i: rows[i].start, reverse=True)
            while indices:
                width = max(1, GATHER_TOKENS // (rows[indices[0]].start + 1))
                groups.append(self._group(sorted(indices[:width]), rows, first))
                indices = indices[width:]
        return groups

    def _group(self, indices: list[int], rows: tuple[Row, ...], first: list[int]) -> RowGroup:
        tokens: list[int] = []
        visible: list[int] = []
        pages: list[list[int]] = []
        for i in indices:
            row = rows[i]
            tokens += range(first[i], first[i] + row.count)
            visible += range(row.start + 1, row.start + row.count + 1)
            used = -(-(row.start + row.count) // PAGE_TOKENS)
            pages.append(self.slots[row.slot].pages[:used])
        longest = max(map(len, pages))
        padded = [p + [-1] * (longest - len(p)) for p in pages]
        return RowGroup(
            rows[indices[0]].form,
            self._ints(tokens),
            self._ints(padded),
            self._ints(visible),
            tuple(rows[i].slot for i in indices),
        )
