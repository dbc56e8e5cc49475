from __future__ import annotations

import pytest
import torch

from engine.hopper.model import without_loss
from engine.hopper.weights import (
    Fp8Weight,
    Quantised,
    WideProduct,
    joined,
    quantise_weight,
    take,
)
from kernels.fp8 import quantise_groups
from tests.checkpoints import quantise_blocks


def random(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.logspace(-2, 1, rows)[:, None]
    return torch.randn(rows, columns, generator=generator) * size


@pytest.mark.parametrize(("rows", "columns"), [(128, 128), (300, 256), (17, 384)])
def test_a_weight_is_quantised_as_published_checkpoints_are(rows: int, columns: int) -> None:
    weight = random(rows, columns)
    found = quantise_weight(weight)
    values, scales = quantise_blocks(weight)
    assert torch.equal(found.scales, scales)
    assert torch.equal(found.values.float(), values.float())
    error = (found.dequantised(torch.float32) - weight).abs()
    assert (error <= weight.abs() / 16 + scales.max() * 2**-9).all()


def test_stored_bytes_are_kept() -> None:
    values, scales = quantise_blocks(random(128, 128))
    weights = {"a.weight": values, "a.weight_scale_inv": scales, "b.weight": random(64, 128)}
    kept = take(weights, "a")
    assert kept.values is values and kept.scales is scales
    assert take(weights, "b").scales.shape == (1, 1)
    assert not weights


def test_joined_weights_keep_their_scales() -> None:
    parts = [quantise_weight(random(rows, 128, rows)) for rows in (128, 40, 72)]
    whole, outputs = joined(*parts)
    assert outputs == [slice(0, 128), slice(128, 168), slice(256, 328)]
    wide = whole.dequantised(torch.float32)
    for part, rows in zip(parts, outputs, strict=True):
        assert torch.equal(wide[rows], part.dequantised(torch.float32))


def test_published_sizes_need_no_filling() -> None:
    def empty(rows: int) -> Fp8Weight:
        values = torch.zeros(rows, 128, dtype=torch.float8_e4m3fn)
        return Fp8Weight(values, torch.ones(-(-rows // 128), 1))

    whole, _ = joined(empty(1536), empty(128), empty(576))
    assert whole.values.shape[0] == 1536 + 128 + 576


def test_some_rows_of_activations() -> None:
    x = Quantised(*quantise_groups(random(6, 256)))
    some = torch.tensor([4, 1])
    for tokens in (some, slice(2, 5)):
        found = x.rows(tokens)
        assert torch.equal(found.values.float(), x.values.float()[tokens])
        assert torch.equal(found.scales, x.scales[tokens])


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_weights_that_are_not_fp8_are_multiplied_as_they_are(batch_invariant: bool) -> None:
    """A float32 weight loses nothing; one that bfloat16 holds exactly is one piece of it."""
    x = random(5, 128, seed=1).bfloat16()
    for weight, pieces in ((random(12, 128), 3), (random(12, 128).bfloat16().float(), 1)):
        product = WideProduct(without_loss(weight), batch_invariant=batch_invariant)
        expected = x.double() @ weight.double().T
        error = (product(x).double() - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max()
        if batch_invariant:
            assert product.weight.shape == (pieces, 1, 12, 128)
        else:
            assert product.weight.dtype == (torch.float32 if pieces == 3 else torch.bfloat16)
