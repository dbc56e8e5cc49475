from __future__ import annotations

import torch
from torch import Tensor

from kernels.indexer_logits import indexer_logits, indexer_logits_reference

HEADS, WIDTH = 8, 32


def inputs(tokens: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [T, J, D], keys [L, D], head weights [T, J] of both signs."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(tokens, HEADS, WIDTH, generator=generator)
    k = torch.randn(length, WIDTH, generator=generator)
    return q, k, torch.randn(tokens, HEADS, generator=generator) / HEADS


def test_scores_match_the_formula_in_float64() -> None:
    q, k, weights = inputs(6, 20)
    visible = [1, 20, 7, 19, 2, 20]
    found = indexer_logits(q, k, weights, torch.tensor(visible))
    expected = indexer_logits_reference(q.double(), k.double(), weights.double(), visible)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert (expected.isfinite() & (expected < 0)).any(), "negative scores must occur"


def test_the_relu_stands_before_the_head_weight() -> None:
    q = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])  # dots 2 and -2
    k = torch.tensor([[2.0, 0.0]])
    weights = torch.tensor([[-3.0, -5.0]])
    # After the weight it would be relu(-6) + relu(10) = 10.
    assert indexer_logits(q, k, weights, torch.tensor([1])).item() == -6.0


def test_what_is_not_visible_is_minus_infinity_even_when_scores_are_negative() -> None:
    q, k, weights = inputs(3, 5)
    scores = indexer_logits(q, k, -weights.abs(), torch.tensor([0, 2, 5]))
    assert scores[0].eq(-torch.inf).all()
    assert scores[1].isfinite().tolist() == [True, True, False, False, False]
    assert scores[2].isfinite().all() and (scores[2] <= 0).all()


def test_nan_outside_the_visible_range_stays_outside() -> None:
    q, k, weights = inputs(2, 6)
    k[4:] = torch.nan
    scores = indexer_logits(q, k, weights, torch.tensor([4, 4]))
    assert scores[:, :4].isfinite().all()
    assert scores[:, 4:].eq(-torch.inf).all()


def test_a_small_workspace_changes_nothing() -> None:
    q, k, weights = inputs(9, 17)
    visible = torch.arange(9, 18)
    whole = indexer_logits(q, k, weights, visible)
    for queries in (1, 2, 4):
        chunked = indexer_logits(
            q, k, weights, visible, workspace_bytes=queries * HEADS * k.shape[0] * 4
        )
        torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-6)


def test_one_context_per_query_equals_one_call_per_query() -> None:
    q, _, weights = inputs(4, 1)
    contexts = torch.stack([inputs(1, 12, seed)[1] for seed in range(4)])
    visible = torch.tensor([12, 3, 1, 8])
    together = indexer_logits(q, contexts, weights, visible)
    for t in range(4):
        rows = slice(t, t + 1)
        alone = indexer_logits(q[rows], contexts[t], weights[rows], visible[rows])
        torch.testing.assert_close(together[rows], alone, atol=1e-6, rtol=1e-6)


def test_bfloat16_inputs_are_multiplied_in_float32() -> None:
    q, k, weights = inputs(4, 40)
    q, k = q.bfloat16(), k.bfloat16()
    visible = [40] * 4
    found = indexer_logits(q, k, weights, torch.tensor(visible))
    expected = indexer_logits_reference(q.double(), k.double(), weights.double(), visible)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_score_has_the_same_bits_in_any_chunk_and_page() -> None:
    tokens, length, page = 130, 256, 64
    q, k, weights = inputs(tokens, length)
    visible = torch.arange(tokens) * (length - 1) // tokens + 1
    whole = indexer_logits(q, k, weights, visible, batch_invariant=True)
    for begin, end in ((0, 1), (0, 7), (40, 57), (100, 129), (129, 130)):
        some = slice(begin, end)
        seen = -(-int(visible[end - 1]) // page) * page
        queries, heads, limits = q[some], weights[some], visible[some]
        shared = indexer_logits(queries, k[:seen], heads, limits, batch_invariant=True)
        assert torch.equal(shared, whole[some, :seen])
        pages = k[:seen].expand(end - begin, -1, -1).split(page, dim=1)
        paged = [
            indexer_logits(queries, keys, heads, limits - i * page, batch_invariant=True)
            for i, keys in enumerate(pages)
        ]
        assert torch.equal(torch.cat(paged, 1), whole[some, :seen])
