from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kernels.attention import attention_reference, mha, mqa_over_latents

HEADS, NOPE, ROPE, VALUE, LATENT = 3, 6, 4, 5, 8
SCALE = 0.37


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def queries_keys_values(tokens: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    q = randn(tokens, HEADS, NOPE + ROPE, seed=1)
    return q, randn(length, HEADS, NOPE + ROPE, seed=2), randn(length, HEADS, VALUE, seed=3)


def close(found: Tensor, expected: Tensor) -> None:
    # Softmax weights are float32 by contract.
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


def test_dense_mha_matches_the_formula() -> None:
    q, k, v = queries_keys_values(4, 7)
    visible = [1, 7, 4, 6]
    found = mha(q, k, v, torch.tensor(visible), SCALE)
    close(found, attention_reference(q, k, v, [list(range(n)) for n in visible], SCALE))


def test_masked_mha_attends_to_the_selected_and_visible_only() -> None:
    q, k, v = queries_keys_values(3, 6)
    selected = torch.tensor([[1, 0, 1, 0, 0, 1], [0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    found = mha(q, k, v, torch.tensor([6, 3, 2]), SCALE, selected)
    close(found, attention_reference(q, k, v, [[0, 2, 5], [1, 2], [0, 1]], SCALE))


def test_a_small_workspace_changes_nothing() -> None:
    q, k, v = queries_keys_values(9, 11)
    visible = torch.arange(3, 12)
    whole = mha(q, k, v, visible, SCALE)
    for queries in (1, 4):
        workspace_bytes = queries * HEADS * 11 * 4
        torch.testing.assert_close(
            mha(q, k, v, visible, SCALE, workspace_bytes=workspace_bytes), whole
        )


def test_a_row_without_any_key_gives_zero() -> None:
    q, k, v = queries_keys_values(2, 5)
    assert mha(q, k, v, torch.tensor([0, 0]), SCALE).eq(0).all()
    none = torch.zeros(2, 5, dtype=torch.bool)
    assert mha(q, k, v, torch.tensor([5, 5]), SCALE, none).eq(0).all()

    rows = randn(2, 4, LATENT + ROPE)
    valid = torch.zeros(2, 4, dtype=torch.bool)
    absorbed = randn(2, HEADS, LATENT + ROPE)
    assert mqa_over_latents(absorbed, rows, valid, SCALE, LATENT).eq(0).all()


def test_large_scores_do_not_overflow() -> None:
    q, k, v = queries_keys_values(2, 5)
    found = mha(q.float() * 1e4, k.float() * 1e4, v.float(), torch.tensor([5, 2]), SCALE)
    assert found.isfinite().all()


def test_absorbed_mqa_equals_expanded_mha() -> None:
    """W_UK folded into the query and W_UV applied to the average: the same attention."""
    tokens, length = 4, 9
    latents, rope_keys = randn(length, LATENT, seed=4), randn(length, ROPE, seed=5)
    up_k, up_v = randn(HEADS, NOPE, LATENT, seed=6), randn(HEADS, VALUE, LATENT, seed=7)
    q_nope, q_rope = randn(tokens, HEADS, NOPE, seed=8), randn(tokens, HEADS, ROPE, seed=9)
    chosen = [[0, 3, 8], [1], [2, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6, 7, 8]]

    k_nope = torch.einsum("lc,hnc->lhn", latents, up_k)
    k = torch.cat((k_nope, rope_keys[:, None].expand(-1, HEADS, -1)), dim=-1)
    v = torch.einsum("lc,hvc->lhv", latents, up_v)
    expected = attention_reference(torch.cat((q_nope, q_rope), -1), k, v, chosen, SCALE)

    absorbed = torch.cat((torch.einsum("thn,hnc->thc", q_nope, up_k), q_rope), dim=-1)
    valid = torch.tensor([[s < len(c) for s in range(length)] for c in chosen])
    gathered = torch.full((tokens, length, LATENT + ROPE), 7.0, dtype=torch.float64)
    for t, positions in enumerate(chosen):
        gathered[t, : len(positions)] = torch.cat((latents, rope_keys), dim=1)[positions]
    averages = mqa_over_latents(absorbed, gathered, valid, SCALE, LATENT)
    close(torch.einsum("thc,hvc->thv", averages, up_v), expected)

    selected = torch.zeros(tokens, length, dtype=torch.bool)
    for t, positions in enumerate(chosen):
        selected[t, positions] = True
    q = torch.cat((q_nope, q_rope), dim=-1)
    close(mha(q, k, v, torch.full((tokens,), length), SCALE, selected), expected)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("masked", [False, True])
def test_a_query_has_the_same_bits_alone_and_among_others(two_threads: None, masked: bool) -> None:
    """At widths at which threads share a single product (seen with MKL on AVX-512)."""
    heads, latent, rope, entries = 8, 512, 64, 64
    q = randn(9, heads, latent + rope, seed=1).float()
    rows = randn(9, entries, latent + rope, seed=2).float()
    valid = randn(9, entries, seed=3) > -0.5 if masked else None

    def some(begin: int, end: int) -> Tensor:
        chosen = None if valid is None else valid[begin:end]
        return mqa_over_latents(
            q[begin:end], rows[begin:end], chosen, SCALE, latent, batch_invariant=True
        )

    whole = some(0, 9)
    for count in (1, 2, 3, 8):
        for begin in (0, 9 - count):
            assert torch.equal(some(begin, begin + count), whole[begin : begin + count])
