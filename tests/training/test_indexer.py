"""Selection and the indexer's loss."""

from __future__ import annotations

import torch

from training.indexer import index_loss, select_top_k
from training.layers import hadamard_matrix
from training.model import visible_keys


def test_selects_the_best_visible_keys() -> None:
    scores = torch.randn(1, 20, 20, generator=torch.Generator().manual_seed(0)) - 5
    visible = visible_keys(torch.zeros(1, 20))
    chosen = select_top_k(scores, visible, 4)
    assert not (chosen & ~visible).any()
    assert chosen.sum(-1)[0].tolist() == [min(row + 1, 4) for row in range(20)]
    for row in range(4, 20):
        best = scores[0, row, : row + 1].topk(4).indices.sort().values
        assert chosen[0, row].nonzero().flatten().tolist() == best.tolist()


def test_loss_is_zero_for_the_target_itself_and_positive_otherwise() -> None:
    allowed = torch.ones(1, 1, 5, dtype=torch.bool)
    attention = torch.tensor([[[8.0, 4.0, 2.0, 1.0, 1.0]]])
    assert index_loss(attention.log(), attention, allowed).abs() < 1e-6
    assert index_loss(torch.zeros(1, 1, 5), attention, allowed) > 0.1


def test_loss_ignores_keys_that_are_not_allowed() -> None:
    allowed = torch.tensor([[[True, True, False]]])
    attention = torch.tensor([[[3.0, 1.0, 12.0]]])
    scores = torch.tensor([[[3.0, 1.0, 700.0]]]).log()
    assert index_loss(scores, attention, allowed).abs() < 1e-6


def test_hadamard_matrix_is_symmetric_and_orthogonal() -> None:
    matrix = hadamard_matrix(128)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(128), atol=1e-5, rtol=0)
    assert torch.equal(matrix, matrix.T)
