from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.fp8 import dequantise_groups, quantise_groups
from kernels.hadamard import hadamard, hadamard_reference
from kernels.hopper.index_query import quantised_index_queries
from kernels.rope import rope_half_split, rope_reference, rope_table

T, J, D, R = 11, 16, 64, 32
POSITIONS = [0, 1, 70, 3, 131_071, 9, 2, 4, 5, 6, 7]
INV_FREQ = 10_000.0 ** (-torch.arange(0, R, 2).double() / R)


def inputs(dtype: torch.dtype, device: torch.device, heads: int = J) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(T, heads, D, generator=generator).to(dtype)
    queries[2, 3] = 0
    queries[4] *= 300
    return {
        "queries": queries.to(device),
        "weights": torch.randn(T, heads, generator=generator).to(device),
        "table": rope_table(INV_FREQ, torch.tensor(POSITIONS)).to(device),
    }


@pytest.mark.parametrize(
    ("dtype", "heads"), [(torch.bfloat16, 16), (torch.float32, 64), (torch.float16, 8)]
)
def test_queries_are_the_torch_path_s(device: torch.device, dtype: torch.dtype, heads: int) -> None:
    given = inputs(dtype, device, heads)
    found, weights = quantised_index_queries(**given)
    queries = given["queries"].clone()
    queries[..., :R] = rope_half_split(queries[..., :R], given["table"])
    values, scales = quantise_groups(hadamard(queries), D)
    # Values beside a tie may fall to the other side: the Hadamard rotation adds in another order.
    a, b = (x.view(torch.uint8).int() for x in (found, values))
    assert (a != b).float().mean() < 0.001
    assert ((a - b).abs() <= 1).all()
    assert torch.equal(weights, given["weights"] * scales[..., 0])


def test_queries_follow_the_float64_reference(device: torch.device) -> None:
    given = inputs(torch.float32, device)
    values, weights = (x.cpu() for x in quantised_index_queries(**given))
    queries, head_weights = given["queries"].cpu().double(), given["weights"].cpu()
    scales = weights / head_weights
    found = dequantise_groups(values, scales[..., None], torch.float64)
    for t, j in ((0, 0), (2, 3), (4, 15), (10, 7)):
        turned = rope_reference(queries[t, j, :R], POSITIONS[t], INV_FREQ, half_split=True)
        expected = hadamard_reference(torch.cat((turned, queries[t, j, R:])))
        # Half a step of three mantissa bits, or of the subnormals at a scale of at most amax/224;
        # and what angles in float32 are off by.
        limit = expected.abs() * 2**-4 + expected.abs().max() * (2**-10 / 224 + 1e-6)
        assert ((found[t, j] - expected).abs() <= limit).all()


def test_a_query_does_not_depend_on_the_other_tokens_or_their_distance(
    device: torch.device,
) -> None:
    given = inputs(torch.bfloat16, device)
    values, weights = quantised_index_queries(**given)
    wide = torch.zeros(T, J * D + 24, dtype=torch.bfloat16, device=device)
    wide[:, : J * D] = given["queries"].flatten(1)
    apart = wide[:, : J * D].unflatten(1, (J, D))
    for t in range(T):
        one = slice(t, t + 1)
        alone, scaled = quantised_index_queries(
            apart[one], given["weights"][one], given["table"][one]
        )
        assert torch.equal(alone.view(torch.uint8), values[one].view(torch.uint8))
        assert torch.equal(scaled, weights[one])


def test_no_tokens_give_no_queries(device: torch.device) -> None:
    given = inputs(torch.float32, device)
    values, weights = quantised_index_queries(**{name: x[:0] for name, x in given.items()})
    assert values.shape == (0, J, D) and weights.shape == (0, J)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.ones(T, 12, D)}, "the number of index heads is 12; allowed are 8, 16,"),
        ({"queries": torch.ones(T, J, 48)}, "the index width is 48"),
        ({"queries": torch.ones(J, T, D).transpose(0, 1)}, "queries has a head stride of 704"),
        ({"weights": torch.ones(T, J).double()}, "weights is float64; must be float32"),
        ({"table": torch.ones(T - 1, R // 2, dtype=torch.complex64)}, "table has shape"),
        ({"table": torch.ones(T, 0, dtype=torch.complex64)}, "table rotates 0 channels"),
    ],
)
def test_what_the_kernel_does_not_support_is_named(
    device: torch.device, change: dict[str, Tensor], message: str
) -> None:
    given = inputs(torch.float32, device) | {n: v.to(device) for n, v in change.items()}
    with pytest.raises(ValueError, match=message):
        quantised_index_queries(**given)
