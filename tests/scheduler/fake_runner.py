"""A runner without a model: it keeps what the engine would, and checks every plan against it."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

from scheduler.config import SchedulerConfig
from scheduler.logprobs import TokenLogprobs
from scheduler.pages import PagePool
from scheduler.plan import StepPlan, StepResult
from tests.scheduler.pool_checks import references

History = tuple[str, tuple[int, ...]]
"""What a cache slot holds: whose tokens, and all tokens up to and including its own."""


@dataclass
class Mirror:
    owner: str
    """Tenant and salt of the request."""
    request_id: str
    choice: int
    token_ids: list[int]
    pages: list[int]
    computed_tokens: int | None
    """None until the first row says how many tokens the prefix hit brought."""
    samples: bool
    """Whether it generates; a pre-warmed one does not."""
    scores: bool = False
    """Whether log-probabilities of its prompt were asked for."""


class FakeRunner:
    """Executes plans on cache slots that remember which history was written to them."""

    def __init__(self, config: SchedulerConfig, pool: PagePool) -> None:
        self.config, self.pool = config, pool
        self.slots: dict[int, Mirror] = {}
        self.cache: dict[int, History] = {}
        self.owners: dict[str, str] = {}
        """Request id -> tenant and salt."""
        self.computed_tokens = 0

    def execute(self, plan: StepPlan) -> StepResult:
        for slot in plan.forget:
            del self.slots[slot]
        for new in plan.prepare.new_slots:
            assert new.slot not in self.slots, "the slot is taken"
            assert 0 <= new.slot < self.config.max_num_seqs
            self.slots[new.slot] = Mirror(
                self.owners[new.request_id.removeprefix("pre-warm ")],
                new.request_id,
                new.choice,
                list(new.token_ids),
                list(new.pages),
                None,
                new.sampling.max_tokens > 0,
                new.sampling.prompt_logprobs is not None and new.choice == 0,
            )
        for slot, pages in plan.prepare.new_pages:
            self.slots[slot].pages.extend(pages)
        assert len({row.slot for row in plan.rows}) == len(plan.rows), "one row per slot"
        self._check_budgets(plan)
        tokens = []
        scores: dict[int, list[TokenLogprobs]] = {}
        for place, row in enumerate(plan.rows):
            mirror = self.slots[row.slot]
            self._compute(mirror, row.start, row.count)
            end = row.start + row.count
            ends = mirror.samples and end == len(mirror.token_ids)
            if row.sample == "every":
                assert mirror.scores
                known = range(row.start + 1, min(end + 1, len(mirror.token_ids)))
                scores[place] = [self.scored(position) for position in known]
            else:
                assert row.sample == ("last" if ends else "none")
            if ends:
                token = self.sampled(mirror.request_id, mirror.choice, end)
                mirror.token_ids.append(token)
                tokens.append(token)
            else:
                tokens.append(-1)
        return StepResult(plan.step, tokens, [None] * len(tokens), 0.01, scores)

    @staticmethod
    def scored(position: int) -> TokenLogprobs:
        """What is said of the prompt's token there."""
        return TokenLogprobs(-float(position), [], position)

    @staticmethod
    def sampled(request_id: str, choice: int, position: int) -> int:
        """A token of a small vocabulary; 1 ends the sequence."""
        return crc32(f"{request_id} {choice} {position}".encode()) % 7

    def _compute(self, mirror: Mirror, start: int, count: int) -> None:
        size, end = self.config.page_tokens, start + count
        assert count >= 1
        assert end <= len(mirror.token_ids), "a token that nobody knows"
        assert end <= len(mirror.pages) * size, "no page for it"
        if mirror.computed_tokens is None:
            assert start % size == 0 and start <= len(mirror.token_ids) - 1, "hits are whole pages"
            mirror.computed_tokens = start
        assert start == mirror.computed_tokens, "every token once, in order"
        for position in range(end):
            page = mirror.pages[position // size]
            slot = page * size + position % size
            history = (mirror.owner, tuple(mirror.token_ids[: position + 1]))
            if position >= start:
                assert references(self.pool, page) == 1, "a shared page is written"
                self.cache[slot] = history
            else:
                assert self.cache[slot] == history, "the cache holds another history"
        mirror.computed_tokens = end
        self.computed_tokens += count

    def _check_budgets(self, plan: StepPlan) -> None:
        config = self.config
        assert sum(row.count for row in plan.rows) <= config.max_num_batched_tokens
        scores = [
            row.count * (row.start + row.count) * 4 if row.form in ("mqa", "masked_mha") else 0
            for row in plan.rows
        ]
        if sum(scores) > config.indexer_workspace_bytes:
            # Only one row that cannot be made smaller may exceed the workspace, alone.
            scoring = [row for row, bytes_ in zip(plan.rows, scores, strict=True) if bytes_]
            assert len(scoring) == 1 and scoring[0].count == 1
        for row in plan.rows:
            assert row.form == config.forms.form(row.start, row.count)
