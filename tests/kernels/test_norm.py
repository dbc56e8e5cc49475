from __future__ import annotations

import torch

from kernels.norm import layer_norm, layer_norm_reference, rms_norm, rms_norm_reference

EPS = 1e-6


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_both_match_their_formulas_in_float64() -> None:
    x, weight, bias = draw(5, 96, seed=0) * 3 + 1, 1 + draw(96, seed=1), draw(96, seed=2)
    wide = (x.double(), weight.double())
    found = rms_norm(x, weight, EPS)
    torch.testing.assert_close(found.double(), rms_norm_reference(*wide, EPS), atol=1e-5, rtol=1e-5)
    found = layer_norm(x, weight, bias, EPS)
    expected = layer_norm_reference(*wide, bias.double(), EPS)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_index_keys_need_the_layer_norm_not_the_rms_norm() -> None:
    x, weight = draw(4, 64, seed=3) + 2, torch.ones(64)
    difference = layer_norm(x, weight, torch.zeros(64), EPS) - rms_norm(x, weight, EPS)
    assert difference.abs().max() > 0.5


def test_bfloat16_is_rounded_once_after_the_weight() -> None:
    x, weight, bias = draw(8, 64, seed=4).bfloat16(), 1 + draw(64, seed=5), draw(64, seed=6)
    assert torch.equal(rms_norm(x, weight, EPS), rms_norm(x.float(), weight, EPS).bfloat16())
    found = layer_norm(x, weight, bias, EPS)
    assert torch.equal(found, layer_norm(x.float(), weight, bias, EPS).bfloat16())


def test_a_zero_row_stays_zero() -> None:
    zeros = torch.zeros(1, 32)
    assert rms_norm(zeros, torch.ones(32), EPS).eq(0).all()
    assert layer_norm(zeros, torch.ones(32), torch.zeros(32), EPS).eq(0).all()
