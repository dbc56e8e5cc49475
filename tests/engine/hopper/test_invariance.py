"""--batch-invariant on the kernels: the same bits alone, in company, in chunks, on other pages, and
in a graph's bucket.

The interpreter adds in one order for every place in a tile. That the hardware does, as long as the
instruction is the same, is left for a GPU to show (tests/gpu).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from engine.config import PAGE_TOKENS
from engine.hopper.graphs import Bucket, decode_batch
from engine.hopper.model import HopperDeepseekV32
from engine.hopper.runner import HopperRunner
from scheduler.plan import NewSlot, Prepare, Row, StepPlan
from scheduler.request import Sampling
from tests.engine.hopper.tiny import empty_cache, kernels_model, prompt_of

SHORT, LONG = 6, 66
"""Prompts within a page and beyond it, both beyond top-k (4)."""

Step = Sequence[tuple[int, int]]
"""One step's rows: (sequence, tokens)."""


@pytest.fixture(scope="module", autouse=True)
def small_tiles() -> Iterator[None]:
    """Tiles of the smallest size, one at every number of tokens as the large ones: the interpreter
    computes all of a tile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kernels.hopper.routed_experts.INVARIANT_TILE_TOKENS", 16)
        patch.setattr("kernels.hopper.fixed_order_linear.BLOCK_TOKENS", 16)
        patch.setattr("kernels.hopper.fixed_order_fp8_linear.TILE_TOKENS", 16)
        yield


@pytest.fixture(scope="module")
def model() -> HopperDeepseekV32:
    return kernels_model(1, batch_invariant=True)


def runner_of(
    model: HopperDeepseekV32, prompts: list[list[int]], *, first_page: int = 0
) -> HopperRunner:
    """A runner that has taken the prompts in, their pages in descending order from the last one."""
    counts = [-(-len(prompt) // PAGE_TOKENS) for prompt in prompts]
    free = list(range(first_page, first_page + sum(counts)))
    cache = empty_cache(1, first_page + sum(counts))
    sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 128, "max_model_len": 128}
    runner = HopperRunner(model, cache, **sizes)
    new = tuple(
        NewSlot(
            slot=slot,
            request_id=f"{slot}",
            choice=0,
            token_ids=prompt,
            prompt_tokens=len(prompt),
            sampling=Sampling(max_tokens=1, temperature=0.0),
            pages=[free.pop() for _ in range(counts[slot])],
        )
        for slot, prompt in enumerate(prompts)
    )
    runner.execute(StepPlan(step=0, rows=(), prepare=Prepare(new_slots=new)))
    return runner


@torch.inference_mode()
def logits_of(runner: HopperRunner, steps: Sequence[Step]) -> list[Tensor]:
    """Returns the logits of all tokens that the steps compute, sequence by sequence."""
    found: dict[int, list[Tensor]] = {slot: [] for slot in runner.slots}
    done = dict.fromkeys(runner.slots, 0)
    for step in steps:
        rows = []
        for slot, count in step:
            rows.append(Row(slot=slot, start=done[slot], count=count, sample="every", form="mqa"))
            done[slot] += count
        logits = runner.compute(tuple(rows))
        for row, lines in zip(rows, logits.split([row.count for row in rows]), strict=True):
            found[row.slot].append(lines)
    return [torch.cat(lines) for lines in found.values()]


def alone(model: HopperDeepseekV32, length: int) -> Tensor:
    """The logits of a prompt's tokens, computed in one step by themselves."""
    return logits_of(runner_of(model, [prompt_of(length)]), [[(0, length)]])[0]


@pytest.fixture(scope="module")
def short(model: HopperDeepseekV32) -> Tensor:
    return alone(model, SHORT)


@pytest.fixture(scope="module")
def long(model: HopperDeepseekV32) -> Tensor:
    return alone(model, LONG)


def test_prefill_beside_a_single_token_on_other_pages(
    model: HopperDeepseekV32, short: Tensor
) -> None:
    runner = runner_of(model, [prompt_of(1, 1), prompt_of(SHORT)], first_page=3)
    _, found = logits_of(runner, [[(0, 1), (1, SHORT)]])
    assert torch.equal(found, short)


@pytest.mark.check
def test_token_by_token_beside_others(model: HopperDeepseekV32, short: Tensor) -> None:
    runner = runner_of(model, [prompt_of(SHORT), prompt_of(9, 1), prompt_of(3, 2)])
    steps: list[Step] = [
        [(0, 3), (1, 7)],
        [(0, 1), (1, 1)],
        [(0, 1), (1, 1), (2, 2)],
        [(2, 1), (0, 1)],
    ]
    assert torch.equal(logits_of(runner, steps)[0], short)


@pytest.mark.check
@pytest.mark.timeout(900)
def test_chunks_across_a_page_boundary(model: HopperDeepseekV32, long: Tensor) -> None:
    runner = runner_of(model, [prompt_of(LONG), prompt_of(2, 1)], first_page=1)
    steps: list[Step] = [[(0, 63), (1, 2)], [(0, 2)], [(0, 1)]]
    assert torch.equal(logits_of(runner, steps)[0], long)


@pytest.mark.check
@pytest.mark.parametrize(("rows", "context"), [(1, 64), (3, 128)])
def test_a_graphs_bucket_changes_no_bit(
    model: HopperDeepseekV32, short: Tensor, rows: int, context: int
) -> None:
    """Not of the one row in it, and not of what it writes."""
    runner = runner_of(model, [prompt_of(SHORT)])
    logits_of(runner, [[(0, SHORT - 1)]])
    last = Row(slot=0, start=SHORT - 1, count=1, sample="last", form="mqa")
    bucket = Bucket(rows, context, "mqa")
    with torch.inference_mode():
        batch = decode_batch(bucket, runner.send_decode(bucket, [last]), runner.page_table.table)
        found = model.forward(batch, runner.cache)
    assert torch.equal(found[0], short[-1])
    other = runner_of(model, [prompt_of(SHORT)])
    logits_of(other, [[(0, SHORT)]])
    assert torch.equal(runner.cache.latents.rows, other.cache.latents.rows)
    assert torch.equal(runner.cache.index_keys.pages, other.cache.index_keys.pages)


@pytest.mark.check
def test_without_it_the_bits_do_depend_on_the_batch() -> None:
    """Otherwise the tests above would prove nothing."""
    model = kernels_model(1)
    runner = runner_of(model, [prompt_of(SHORT), prompt_of(9, 1)])
    found, _ = logits_of(runner, [[(0, SHORT - 1), (1, 8)], [(0, 1), (1, 1)]])
    assert not torch.equal(found, alone(model, SHORT))


def test_other_forms_are_refused(model: HopperDeepseekV32) -> None:
    row = Row(slot=0, start=0, count=3, sample="last", form="mha")
    with pytest.raises(ValueError, match=r"take the form mqa; the plan has \{'mha'\}"):
        runner_of(model, [prompt_of(3)]).compute((row,))
