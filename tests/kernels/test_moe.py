from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.moe import SwiGlu, route, route_reference, routed_experts

HIDDEN, EXPERTS, GROUPS = 12, 16, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def routed(x: Tensor, gate: Tensor, bias: Tensor, **changed: Any) -> list[dict[int, float]]:
    settings = {
        "groups": GROUPS,
        "kept_groups": 2,
        "top_k": 4,
        "scaling": 2.5,
        "normalise": True,
    } | changed
    experts, weights = route(x @ gate.T, bias, **settings)
    assert weights.dtype == torch.float32
    return [
        dict(zip(e, w, strict=True))
        for e, w in zip(experts.tolist(), weights.tolist(), strict=True)
    ]


def same(found: list[dict[int, float]], expected: list[dict[int, float]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for expert, weight in one.items():
            assert weight == pytest.approx(other[expert], rel=1e-5)


@pytest.mark.parametrize("kept_groups", [1, 2, 4])
@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_routing_matches_plain_sorting(kept_groups: int, shift: float) -> None:
    """shift -3: every biased score is negative, so leaving a group out must mean -inf, not 0."""
    x, gate, bias = draw(50, HIDDEN), draw(EXPERTS, HIDDEN, seed=1), draw(EXPERTS, seed=2) + shift
    found = routed(x, gate, bias, kept_groups=kept_groups)
    expected = route_reference(
        x.double(), gate.double(), bias.double(), GROUPS, kept_groups, 4, 2.5
    )
    same(found, expected)


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=EXPERTS, max_size=EXPERTS),
    st.integers(1, 4),
)
def test_ties_go_to_the_lowest_group_and_expert(bias: list[float], kept_groups: int) -> None:
    x, gate = torch.zeros(1, HIDDEN), draw(EXPERTS, HIDDEN)  # every affinity is exactly 0.5
    found = routed(x, gate, torch.tensor(bias), kept_groups=kept_groups)
    expected = route_reference(
        x.double(), gate.double(), torch.tensor(bias).double(), GROUPS, kept_groups, 4, 2.5
    )
    same(found, expected)


def test_the_bias_selects_and_does_not_weigh() -> None:
    x, gate = draw(3, HIDDEN), draw(EXPERTS, HIDDEN, seed=1)
    bias = torch.full((EXPERTS,), -5.0)
    bias[[1, 2, 5, 6]] = 100.0
    scores = torch.sigmoid(x @ gate.T)
    for row, weights in zip(scores, routed(x, gate, bias), strict=True):
        assert weights.keys() == {1, 2, 5, 6}
        total = sum(row[e].item() for e in weights)
        for expert, weight in weights.items():
            assert weight == pytest.approx(2.5 * row[expert].item() / total, rel=1e-5)


def test_only_experts_of_the_kept_groups_are_chosen() -> None:
    # Expert 0 is the best of all, but its group's two best sum to less than the others'.
    bias = torch.tensor([3.0, -9, -9, -9] + [1.0, 1.0, 0, 0] * 2 + [-9.0] * 4)
    (weights,) = routed(torch.zeros(1, HIDDEN), torch.zeros(EXPERTS, HIDDEN), bias)
    assert weights.keys() == {4, 5, 8, 9}


def test_without_normalisation_weights_are_the_scaled_affinities() -> None:
    x, gate, bias = draw(5, HIDDEN), draw(EXPERTS, HIDDEN, seed=1), torch.zeros(EXPERTS)
    scores = torch.sigmoid(x @ gate.T)
    for row, weights in zip(scores, routed(x, gate, bias, normalise=False), strict=True):
        for expert, weight in weights.items():
            assert weight == pytest.approx(2.5 * row[expert].item(), rel=1e-5)


def test_vanishing_affinities_do_not_divide_by_zero() -> None:
    experts, weights = route(
        torch.full((1, EXPERTS), -1000.0),
        torch.zeros(EXPERTS),
        groups=1,
        kept_groups=1,
        top_k=4,
        scaling=2.5,
        normalise=True,
    )
    assert experts.tolist() == [[0, 1, 2, 3]]
    assert weights.eq(0).all()


def test_swiglu_is_down_of_silu_gate_times_up() -> None:
    x, gate, up = draw(5, HIDDEN), draw(8, HIDDEN, seed=1), draw(8, HIDDEN, seed=2)
    down = draw(HIDDEN, 8, seed=3)
    wide = x.double()
    expected = (F.silu(wide @ gate.double().T) * (wide @ up.double().T)) @ down.double().T
    found = SwiGlu(gate, up, down)(x)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_routed_experts_match_a_plain_loop(dtype: torch.dtype, tokens: int) -> None:
    top_k, width = 3, 8
    generator = torch.Generator().manual_seed(5)
    # Expert 7 is never chosen: an expert without tokens must not disturb the others.
    experts = torch.stack([torch.randperm(7, generator=generator)[:top_k] for _ in range(tokens)])
    weights = draw(tokens, top_k, seed=6).abs()
    x = draw(tokens, HIDDEN).to(dtype)
    gates, ups = draw(2, 8, width, HIDDEN, seed=7).to(dtype)
    downs = draw(8, HIDDEN, width).to(dtype)
    swiglus = [SwiGlu(*each) for each in zip(gates, ups, downs, strict=True)]
    expected = torch.zeros(tokens, HIDDEN)
    for t in range(tokens):
        for e, w in zip(experts[t], weights[t], strict=True):
            expected[t] += w * swiglus[e](x[t : t + 1])[0].float()
    found = routed_experts(x, experts, weights, swiglus)
    assert found.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 0.25  # single rows round differently in bf16
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
