"""The kernels' model against the torch model on the same weights and rounded inputs.

Both round to bfloat16 at the same places or nearly so. Where the last bits differ, some values fall
on the other side of an FP8 step, 2^-4 of themselves, and every product after that differs by some
percent. What is chosen is chaotic beyond that: the kernels' model is forced to attend to what the
torch model selected, and to compute the experts it chose, while its own choices are compared.
Exchanged halves, a forgotten scale or a wrong mask change results by as much as their own size.
"""

from __future__ import annotations

import pytest
import torch

from engine.hopper.graphs import Bucket, decode_batch
from engine.hopper.runner import HopperRunner
from scheduler.plan import Prepare, Row, StepPlan
from tests.engine.hopper.tiny import (
    FIELDS,
    Run,
    Step,
    empty_cache,
    kernels_model,
    new_slots,
    prompt_of,
    run,
    torch_model,
)
from tests.reference_model import Trace

ATTENTION_TOLERANCE = 2**-6
"""Of the largest value, of the first layer's attention before its last product: FP8 rounding has
met its inputs only, which are the same up to the last bit of bfloat16."""
RELATIVE_TOLERANCE = 0.08
"""Of all logits together, after two layers."""
LOGIT_TOLERANCE = 1.0
"""Of a single logit; they spread over about +-8."""
SCORE_MARGIN = 0.25
"""A selection may differ where a score lies this close to the k-th; scores spread over units."""
ROUTER_TOLERANCE = 0.25
"""Of a router logit, which are about 1."""


def compare(expected: Run, found: Run) -> int:
    """Asserts that two runs agree; returns how many queries were scored."""
    for one, other in zip(expected.attended, found.attended, strict=True):
        torch.testing.assert_close(
            other, one, atol=ATTENTION_TOLERANCE * float(one.abs().max()), rtol=0
        )
    for (logits, experts, _), (own_logits, own, _) in zip(
        expected.routed, found.routed, strict=True
    ):
        torch.testing.assert_close(own_logits, logits, atol=ROUTER_TOLERANCE, rtol=0)
        same = experts.sort(1).values == own.sort(1).values
        assert same.all(1).float().mean() >= 0.75
    return sum(
        compare_traces(one, other) for one, other in zip(expected.traces, found.traces, strict=True)
    )


def compare_traces(expected: Trace, found: Trace) -> int:
    """Of one sequence."""
    torch.testing.assert_close(found.logits, expected.logits, atol=LOGIT_TOLERANCE, rtol=0)
    error = (expected.logits - found.logits).norm() / expected.logits.norm()
    assert error <= RELATIVE_TOLERANCE
    scored = 0
    for scores, own_scores, selected, own in zip(
        expected.scores, found.scores, expected.selected, found.selected, strict=True
    ):
        rows = ~own_scores.isnan().any(dim=-1)
        assert torch.equal(rows, ~scores.isnan().any(dim=-1))
        scored += int(rows.sum())
        kth = scores.masked_fill(~selected, torch.inf).amin(-1, keepdim=True)
        clear = (scores - kth).abs() > SCORE_MARGIN
        assert not ((selected ^ own) & clear)[rows].any()
    return scored


def check(layers: int, lengths: list[int], steps: list[Step]) -> int:
    prompts = [prompt_of(length, seed) for seed, length in enumerate(lengths)]
    expected = run(torch_model(layers), prompts, steps)
    return compare(expected, run(kernels_model(layers), prompts, steps, forced=expected))


def test_a_prefill_within_top_k_and_a_decode_step_beyond_it() -> None:
    assert FIELDS["index_topk"] == 4
    assert check(1, [5], [[(0, 4, "mha")], [(0, 1, "mqa")]]) == 1


@pytest.mark.check
def test_two_layers_in_every_form_with_prefill_and_decode_in_one_step() -> None:
    steps: list[Step] = [
        [(0, 3, "mha")],
        [(0, 1, "dense_mqa")],
        [(0, 4, "masked_mha")],
        [(0, 3, "mqa"), (1, 2, "mha")],
        [(0, 1, "mqa"), (1, 1, "dense_mqa")],
        [(1, 3, "masked_mha"), (0, 1, "mqa")],
        [(0, 1, "mqa"), (1, 1, "mqa")],
    ]
    assert check(2, [14, 7], steps) == 2 * (4 + 3 + 1 + 4 + 2)


@pytest.mark.check
def test_a_page_boundary_inside_a_chunk() -> None:
    assert check(1, [67], [[(0, 62, "mha")], [(0, 4, "mqa")], [(0, 1, "mqa")]]) == 5


@pytest.mark.check
def test_dense_attention_beyond_what_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.hopper.attention.EXPANDED_KEYS", 3)
    prompts, steps = [prompt_of(6)], [[(0, 3, "mha")], [(0, 2, "mha")], [(0, 1, "dense_mqa")]]
    expected = run(torch_model(1, select=False), prompts, steps)
    compare(expected, run(kernels_model(1, select=False), prompts, steps, forced=expected))


@pytest.mark.check
def test_rows_that_fill_up_a_graphs_batch_change_nothing() -> None:
    prompt = prompt_of(6)
    cache = empty_cache(1, 1)
    runner = HopperRunner(
        kernels_model(1), cache, max_num_seqs=2, max_num_batched_tokens=8, max_model_len=64
    )
    prefill = Row(slot=0, start=0, count=5, sample="none", form="mqa")
    plan = StepPlan(step=0, rows=(prefill,), prepare=Prepare(new_slots=new_slots([prompt])))
    runner.execute(plan)
    before = cache.latents.rows.clone(), cache.index_keys.pages.clone()
    decode = Row(slot=0, start=5, count=1, sample="last", form="mqa")
    with torch.inference_mode():
        alone = runner.compute((decode,))
        after = cache.latents.rows.clone(), cache.index_keys.pages.clone()
        cache.latents.rows.copy_(before[0])
        cache.index_keys.pages.copy_(before[1])
        bucket = Bucket(2, 64, "mqa")
        batch = decode_batch(bucket, runner.send_decode(bucket, [decode]), runner.page_table.table)
        filled = runner.model.forward(batch, cache)
    assert torch.equal(cache.latents.rows, after[0])
    assert torch.equal(cache.index_keys.pages, after[1])
    torch.testing.assert_close(filled[:1], alone, atol=LOGIT_TOLERANCE, rtol=0)
    assert filled.isfinite().all()
