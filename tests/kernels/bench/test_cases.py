"""Cases at small sizes, in the interpreter: their checks hold, and see what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kernels.bench import attention, fixed_order, indexer, memory, products
from kernels.bench.case import Case, Place, Prepared, other_bits

CPU = torch.device("cpu")
PLACE = Place("decode", "indexer", 0, 1, 1)


@pytest.mark.parametrize(
    "case",
    [
        attention.sparse_case(2, 16, 64, 128),
        attention.sparse_case(2, 16, 64, 128, cache_dtype="bfloat16"),
        attention.combine_case(1, 2),
        fixed_order.product_case("few outputs", 1, 3, 1152, 64, torch.float32),
        fixed_order.product_case("groups", 2, 3, 128, 64),
        products.linear_case(3, 128, 256, None),
        products.linear_case(3, 128, 256, None, fixed_order=True),
        indexer.paged_case(2, 128, None),
        memory.latents_case(64),
        memory.index_keys_case(64),
        memory.index_queries_case(2),
    ],
    ids=lambda case: f"{case.op}: {case.shape}",
)
def test_small_cases_are_right_and_repeat_their_bits(case: Case) -> None:
    torch.manual_seed(0)
    prepared = case.prepare(CPU)
    assert prepared.error() <= case.tolerance
    assert other_bits(prepared, 2) == 0


def test_what_prefill_scores_leave_unwritten_is_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(indexer, "CHUNK", 64)
    case = indexer.prefill_case(128, PLACE)
    prepared = case.prepare(CPU)
    assert prepared.error() <= case.tolerance
    kept = prepared.repeated(torch.full((64, 128), torch.nan))
    assert isinstance(kept, Tensor)
    assert kept.isnan().sum(1).tolist() == indexer.causal_ends(128, CPU).tolist()
    assert other_bits(prepared, 2) == 0


def test_sampled_tokens_are_compared_with_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "VOCABULARY", 500)
    torch.manual_seed(0)
    prepared = memory.sampling_case(4).prepare(CPU)
    assert prepared.error() == 0.0
    # Any of the 50 most likely tokens would pass for a drawn one that nothing else is known of.
    monkeypatch.setattr(memory, "sample", lambda logits, *_: logits.argmax(1))
    assert prepared.error() > 0.0


def test_every_run_must_give_the_same_bits() -> None:
    def never() -> float:
        raise AssertionError("only the bits are looked at")

    answers: Iterator[Tensor] = iter([torch.tensor([0.0])] * 3 + [torch.tensor([-0.0])])
    assert other_bits(Prepared(lambda: next(answers), never), 3) == 1
    undefined = torch.tensor([torch.nan])
    assert other_bits(Prepared(lambda: (undefined, None), never), 2) == 0
    written = torch.zeros(2)
    assert other_bits(Prepared(lambda: written.add_(1), never, lambda _: written), 2) == 2
    with pytest.raises(ValueError, match="no tensor"):
        other_bits(Prepared(lambda: None, never))
