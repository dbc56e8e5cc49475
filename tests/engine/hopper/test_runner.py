"""The batches of the kernels' runner against those of the plain one, on a network that records."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Any
from unittest import mock

import msgspec
import pytest
import torch
from torch import Tensor

from engine.attention import Probe
from engine.batch import Batch, RowGroup
from engine.cache import PagedCache
from engine.config import PAGE_TOKENS
from engine.hopper.graphs import Bucket, DecodeGraphs, decode_batch
from engine.hopper.runner import HopperRunner, grouped, side_by_side
from engine.model_config import ModelConfig
from engine.runner import Runner
from scheduler.plan import NewSlot, PageMove, Prepare, Row, StepPlan
from scheduler.request import Sampling
from tests.engine.hopper.tiny import CPU, config_of, empty_cache, prompt_of

LENGTHS = [150, 70, 9, 40]
VOCABULARY = 64


@dataclass
class Recording:
    """Logits that say which token they are of: its id is the largest, its position the second."""

    config: ModelConfig = field(default_factory=lambda: config_of(1))
    device: torch.device = CPU
    batches: list[Batch] = field(default_factory=list)

    def forward(self, batch: Batch, cache: PagedCache, probe: Probe | None = None) -> Tensor:
        return self.logits(self.hidden(batch, cache, probe))

    def hidden(self, batch: Batch, cache: PagedCache, probe: Probe | None = None) -> Tensor:
        self.batches.append(batch)
        return torch.stack((batch.token_ids, batch.positions), 1)[batch.sampled]

    def logits(self, hidden: Tensor) -> Tensor:
        logits = torch.zeros(hidden.shape[0], VOCABULARY)
        return logits.scatter_(1, hidden[:, :1], 1.0) + hidden[:, 1:] / 1e4


def slots() -> tuple[NewSlot, ...]:
    pages = count(20, -1)
    return tuple(
        NewSlot(
            slot=slot,
            request_id=f"{slot}",
            choice=0,
            token_ids=prompt_of(length, slot),
            prompt_tokens=length,
            sampling=Sampling(max_tokens=4, temperature=0.0),
            pages=[next(pages) for _ in range(-(-length // PAGE_TOKENS))],
        )
        for slot, length in enumerate(LENGTHS)
    )


ROWS = (
    Row(slot=2, start=8, count=1, sample="last", form="dense_mqa"),
    Row(slot=0, start=60, count=80, sample="none", form="mqa"),
    Row(slot=3, start=0, count=40, sample="last", form="mha"),
    Row(slot=1, start=69, count=1, sample="last", form="mqa"),
    Row(slot=2, start=2, count=6, sample="last", form="mha"),
)


def both() -> tuple[Batch, Batch, Tensor, Tensor]:
    """The batches and logits of the plain runner and the kernels' for the same plan."""
    cache = empty_cache(1, 24)
    plain = Runner(Recording(), cache)
    staged = HopperRunner(
        Recording(), cache, max_num_seqs=4, max_num_batched_tokens=200, max_model_len=200
    )
    plan = StepPlan(step=0, rows=ROWS, prepare=Prepare(new_slots=slots()))
    logits = []
    for runner in (plain, staged):
        runner.execute(plan)
        assert runner.logits is not None
        logits.append(runner.logits)
    one, other = plain.model, staged.model
    assert isinstance(one, Recording) and isinstance(other, Recording)
    return one.batches[0], other.batches[0], *logits


def test_prompts_are_scored_token_by_token_in_the_plans_order() -> None:
    """Rows of every kind in one step; the first group in the batch is not the plan's first row."""
    rows = (
        Row(slot=2, start=8, count=1, sample="last", form="dense_mqa"),
        Row(slot=0, start=60, count=80, sample="every", form="mqa"),
        Row(slot=1, start=20, count=1, sample="every", form="mqa"),
        Row(slot=3, start=0, count=40, sample="every", form="mha"),
    )
    new = tuple(
        msgspec.structs.replace(
            slot, sampling=Sampling(max_tokens=4, temperature=0.0, prompt_logprobs=1)
        )
        for slot in slots()
    )
    plan = StepPlan(step=0, rows=rows, prepare=Prepare(new_slots=new))
    cache = empty_cache(1, 24)
    sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 122, "max_model_len": 200}
    runners = Runner(Recording(), cache), HopperRunner(Recording(), cache, **sizes)
    for runner in runners:
        result = runner.execute(plan)
        # The network says each token again. Slot 3 has no more tokens than were computed.
        assert result.token_ids == [new[2].token_ids[8], -1, -1, new[3].token_ids[39]]
        for place, (slot, start, end) in {1: (0, 60, 140), 2: (1, 20, 21), 3: (3, 0, 39)}.items():
            found, known = result.prompt_logprobs[place], new[slot].token_ids
            assert [entry.top[0][0] for entry in found] == known[start:end]
            same = [known[i] == known[i + 1] for i in range(start, end)]
            assert [entry.rank == 1 for entry in found] == same


def by_token(batch: Batch) -> list[tuple[int, int, int]]:
    columns = batch.token_ids, batch.positions, batch.slots
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def places(group: RowGroup) -> Tensor:
    """The cache slots of a group's visible positions, sequence by sequence."""
    prefill = group.kernel_rows.prefill
    assert prefill is not None
    return prefill.context_slots


def test_both_compute_the_same_tokens_and_give_logits_in_the_plans_order() -> None:
    plain, staged, logits, own_logits = both()
    assert by_token(plain) == by_token(staged)
    assert torch.equal(logits, own_logits)


def test_groups_are_stretches_that_cover_the_step() -> None:
    _, staged, _, _ = both()
    covered = [group.kernel_rows.tokens for group in staged.groups]
    assert [group.form for group in staged.groups] == ["dense_mqa", "mqa", "mha", "mqa"]
    stops = [some.stop for some in covered if isinstance(some, slice)]
    starts = [some.start for some in covered if isinstance(some, slice)]
    assert starts == [0, *stops[:-1]] and stops[-1] == staged.token_ids.shape[0]


def test_prompts_within_top_k_share_a_group_with_their_own_keys_each() -> None:
    _, staged, _, _ = both()
    (group,) = [group for group in staged.groups if group.form == "mha"]
    rows = group.kernel_rows
    assert rows.prefill is not None
    assert rows.prefill.query_starts.tolist() == [0, 40, 46]
    assert rows.prefill.key_starts.tolist() == [0, 40, 48]
    assert rows.prefill.requests.tolist() == [0] * 40 + [1] * 6
    assert rows.visible.tolist() == [*range(1, 41), *range(3, 9)]
    assert rows.prefill.last_keys.tolist() == [*range(1, 41), *range(43, 49)]
    pages = [new.pages[0] for new in slots()]
    expected = [pages[3] * 64 + i for i in range(40)] + [pages[2] * 64 + i for i in range(8)]
    assert places(group).tolist() == expected


def test_a_prefill_that_scores_reads_scattered_pages_in_order() -> None:
    plain, staged, _, _ = both()
    (group,) = [g for g in staged.groups if g.form == "mqa" and g.tokens.shape[0] > 1]
    (other,) = [g for g in plain.groups if g.form == "mqa" and g.tokens.shape[0] > 1]
    first, second, _ = slots()[0].pages
    expected = [first * 64 + i for i in range(64)] + [second * 64 + i for i in range(64)]
    assert places(group)[:128].tolist() == expected
    # A group that the plain runner made gives kernels the same.
    assert torch.equal(places(group), places(other))
    for name in ("query_starts", "key_starts", "requests", "first_keys", "last_keys"):
        mine, theirs = group.kernel_rows.prefill, other.kernel_rows.prefill
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name


def test_prefill_that_scores_stands_alone() -> None:
    scoring = Row(slot=0, start=0, count=5, sample="none", form="mqa")
    masked = Row(slot=1, start=0, count=5, sample="none", form="masked_mha")
    single = Row(slot=2, start=9, count=1, sample="last", form="mqa")
    assert grouped([scoring, single, scoring, masked, single]) == [[0], [1, 4], [2], [3]]


def test_columns_begin_where_kernels_expect_them() -> None:
    integers, spans = side_by_side([1, 2, 3], [4], [], [5, 6])
    assert [integers[span] for span in spans] == [[1, 2, 3], [4], [], [5, 6]]
    assert all(span.start % 2 == 0 for span in spans)


def test_decode_integers_make_the_batch_of_a_graph() -> None:
    cache = empty_cache(1, 24)
    runner = HopperRunner(
        Recording(), cache, max_num_seqs=4, max_num_batched_tokens=8, max_model_len=200
    )
    runner.execute(StepPlan(step=0, rows=(), prepare=Prepare(new_slots=slots())))
    rows = [ROWS[3], ROWS[0]]
    sent = runner.send_decode(Bucket(3, 200, "mqa"), rows)
    batch = decode_batch(Bucket(3, 200, "mqa"), sent, runner.page_table.table)
    prompts = [new.token_ids for new in slots()]
    assert batch.token_ids.tolist() == [prompts[1][69], prompts[2][8], 0]
    assert batch.positions.tolist() == [69, 8, -1]
    pages = [new.pages for new in slots()]
    assert batch.slots.tolist() == [pages[1][1] * 64 + 5, pages[2][0] * 64 + 8, -1]
    tables = batch.groups[0].kernel_rows.page_tables
    assert tables[0, :2].tolist() == pages[1] and tables[1, 0] == pages[2][0]


def test_logits_of_a_graph_are_those_of_the_rows_that_sample() -> None:
    runner = HopperRunner(
        Recording(), empty_cache(1, 24), max_num_seqs=4, max_num_batched_tokens=8, max_model_len=200
    )
    runner.execute(StepPlan(step=0, rows=(), prepare=Prepare(new_slots=slots())))
    bucket, logits = Bucket(4, 200, "mqa"), torch.arange(4.0)[:, None].expand(4, VOCABULARY)
    runner.graphs = mock.create_autospec(DecodeGraphs, instance=True)
    runner.graphs.find.return_value, runner.graphs.replay.return_value = bucket, logits
    silent = msgspec.structs.replace(ROWS[3], sample="none")
    assert runner.compute((ROWS[0], silent, ROWS[3]))[:, 0].tolist() == [0, 2]
    assert runner.compute((ROWS[0], ROWS[3]))[:, 0].tolist() == [0, 1]
    assert runner.compute((silent,)).shape == (0, VOCABULARY)


def test_integers_of_a_step_are_brought_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of page copies, too: made on the host, pinned, then copied, never made on the device."""
    waited: list[object] = []
    made = torch.tensor

    def tensor(*values: Any, **how: Any) -> Tensor:
        if "device" in how:
            waited.append(values)
        return made(*values, **how)

    runner = HopperRunner(
        Recording(), empty_cache(1, 24), max_num_seqs=4, max_num_batched_tokens=8, max_model_len=200
    )
    monkeypatch.setattr(torch, "tensor", tensor)
    moves = (PageMove(20, 1), PageMove(19, 2))
    prepare = Prepare(new_slots=slots(), copies=moves)
    runner.execute(StepPlan(step=0, rows=(ROWS[3], ROWS[0]), prepare=prepare))
    assert not waited
