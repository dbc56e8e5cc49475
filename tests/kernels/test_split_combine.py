from __future__ import annotations

import math

import torch

from kernels.split_combine import split_combine, split_combine_reference


def test_matches_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    partials = torch.randn(3, 4, 2, 8, generator=generator)
    lse = torch.randn(3, 4, 2, generator=generator) * 10
    lse[0], lse[1, :2] = -torch.inf, -torch.inf
    partials[lse == -torch.inf] = torch.nan
    out, natural = split_combine(partials, lse, torch.float32)
    expected, expected_lse = split_combine_reference(partials.double(), lse.tolist())
    # Sums of four terms in float32.
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(natural.double(), torch.tensor(expected_lse).double())
    assert out[0].eq(0).all() and natural[0].eq(-torch.inf).all()


def test_parts_of_a_softmax_merge_into_the_whole() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(6, generator=generator, dtype=torch.float64) * 3
    values = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    parts = [slice(0, 1), slice(1, 4), slice(4, 6)]
    partials = torch.stack([scores[p].softmax(0) @ values[p] for p in parts])
    lse = torch.stack([scores[p].logsumexp(0) for p in parts]) / math.log(2)
    out, natural = split_combine(
        partials[None, :, None].float(), lse[None, :, None].float(), torch.float64
    )
    torch.testing.assert_close(out[0, 0], scores.softmax(0) @ values, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(natural[0, 0].double(), scores.logsumexp(0), atol=1e-6, rtol=1e-6)
