"""Each token against the torch op's, bit for bit, and the float64 distribution of what is kept.

The kernel's masses are multiples of 2^-28 of the largest, of a float32 exponential: a cumulative
mass is off by at most the vocabulary * 2^-29, and by 1e-6 for the exponentials. A draw whose noise
is nearer than that to a boundary between two tokens may give either.

Searches take the interpreter a quarter of a second each, so rows are few.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import sampling
from kernels.hopper import sampling as hopper_sampling
from kernels.hopper.sampling import sample
from kernels.sampling import kept_reference, uniform, uniform_reference

TOLERANCE = 4e-5
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Rows:
    """Arguments of `sample`, and the same in Python."""

    logits: Tensor
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def arguments(self, device: torch.device) -> dict[str, Tensor]:
        rows = self.logits.shape[0]

        def column(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((rows,), value, dtype=dtype, device=device)

        return {
            "logits": self.logits.to(device),
            "temperature": column(self.temperature, torch.float32),
            "top_k": column(self.top_k, torch.int32),
            "top_p": column(self.top_p, torch.float32),
            "min_p": column(self.min_p, torch.float32),
            "seeds": column(self.seed, torch.int64),
            "choices": torch.arange(rows, device=device),
            "positions": torch.arange(rows, device=device) * 7,
        }

    def noise(self) -> list[float]:
        return [uniform_reference(self.seed, i, 7 * i) for i in range(self.logits.shape[0])]


def draw(rows: int, vocabulary: int, *, scale: float = 3.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator) * scale


def holds(rows: Rows, device: torch.device) -> list[int]:
    """Every drawn token's share of the cumulative distribution contains the row's noise."""
    tokens = sample(**rows.arguments(device)).tolist()
    filters = (rows.temperature, rows.top_k, rows.top_p, rows.min_p)
    for logits, token, noise in zip(rows.logits.tolist(), tokens, rows.noise(), strict=True):
        kept = kept_reference(logits, *filters)
        names = [name for name, _ in kept]
        assert token in names
        place = names.index(token)
        before = sum(p for _, p in kept[:place])
        assert before - TOLERANCE <= noise <= before + kept[place][1] + TOLERANCE
    return tokens


@pytest.mark.parametrize("vocabulary", [1, 5, 1000, 17_000])
def test_draws_invert_the_distribution(vocabulary: int, device: torch.device) -> None:
    """17,000: more than two blocks of 4 x 2048."""
    holds(Rows(draw(1, vocabulary), seed=vocabulary), device)


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 300},
        {"top_p": 0.9},
        {"top_p": 0.0},
        {"min_p": 0.1},
        {"min_p": 1.5},
        {"temperature": 0.3, "top_p": 0.5},
        {"temperature": 2.0, "top_k": 20, "top_p": 0.7, "min_p": 0.05},
        {"temperature": 1e-4, "top_p": 0.99},
    ],
    ids=str,
)
def test_filters_keep_what_the_reference_keeps(
    filters: dict[str, Any], device: torch.device
) -> None:
    holds(Rows(draw(1, 300), seed=2, **filters), device)


def test_ties_are_taken_in_the_order_of_ids(device: torch.device) -> None:
    """The nth of equal tokens is the nth id, here in the third block; both zeros are equal."""
    logits = torch.zeros(3, 17_000)
    logits[:, ::2] = -0.0
    rows = Rows(logits, seed=4)
    last = {name: value[2:] for name, value in rows.arguments(device).items()}
    expected = math.ceil(rows.noise()[2] * 17_000) - 1
    assert expected > 8 * 2048
    assert sample(**last).tolist() == [expected]


def test_ties_at_the_end_of_top_k_go_to_the_lowest_ids(device: torch.device) -> None:
    """Cumulative 0.36, 0.68, 1; noise 0.45 and 0.91."""
    logits = torch.full((2, 30), -1.0)
    logits[:, 20], logits[:, [3, 9, 17, 25]] = 1.0, 0.5
    assert holds(Rows(logits, top_k=3, temperature=5.0, seed=4), device) == [3, 9]


@pytest.mark.parametrize("temperature", [0.0, 9e-6])
def test_without_temperature_the_most_likely_lowest_id_is_taken(
    temperature: float, device: torch.device
) -> None:
    logits = draw(3, 500)
    logits[1, [400, 77]] = 100.0
    tokens = sample(**Rows(logits, temperature).arguments(device)).tolist()
    assert tokens == [int(logits[0].argmax()), 77, int(logits[2].argmax())]


def test_what_is_forbidden_is_never_drawn(device: torch.device) -> None:
    logits = draw(2, 64)
    logits[:, 5:] = -torch.inf
    assert set(holds(Rows(logits, temperature=50.0), device)) <= set(range(5))
    only = torch.full((1, 64), -torch.inf)
    only[:, 63] = -2.0
    assert sample(**Rows(only).arguments(device)).tolist() == [63]


def test_extreme_logits_do_not_overflow(device: torch.device) -> None:
    logits = torch.tensor([[1e38, -1e38, 1.0], [torch.inf, 0.0, 1.0]])
    assert sample(**Rows(logits, temperature=1e-5).arguments(device)).tolist() == [0, 0]
    assert sample(**Rows(logits).arguments(device)).tolist() == [0, 0]


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_a_row_without_a_finite_logit_gives_some_token(value: float, device: torch.device) -> None:
    logits = torch.full((1, 100), value)
    for filters in ({}, {"top_k": 5, "top_p": 0.5, "min_p": 0.1}, {"temperature": 0.0}):
        assert 0 <= sample(**Rows(logits, **filters).arguments(device)).item() < 100


def test_a_logit_of_nan_is_not_the_largest(device: torch.device) -> None:
    logits = draw(1, 100)
    logits[0, 3] = torch.nan
    expected = int(logits.nan_to_num(-torch.inf).argmax())
    assert sample(**Rows(logits, temperature=0.0).arguments(device)).item() == expected


def test_a_row_depends_on_itself_alone(device: torch.device) -> None:
    together = Rows(draw(2, 700), top_p=0.9).arguments(device)
    alone = {name: value[1:] for name, value in together.items()}
    assert sample(**alone).item() == sample(**together)[1].item()


def test_strided_rows(device: torch.device) -> None:
    wide = torch.full((1, 900), torch.nan)
    wide[:, 100:600] = draw(1, 500)
    rows = Rows(wide[:, 100:600])
    arguments = rows.arguments(device) | {"logits": wide.to(device)[:, 100:600]}
    dense = replace(rows, logits=rows.logits.clone())
    assert torch.equal(sample(**arguments), sample(**dense.arguments(device)))


def test_noise_is_the_hash_of_seed_choice_and_position(device: torch.device) -> None:
    """1,000 equal tokens: a draw shows three digits of its noise."""
    arguments = Rows(torch.zeros(3, 1000)).arguments(device) | {
        "seeds": torch.tensor([-1, 2**63 - 1, -(2**63)], device=device),
        "choices": torch.tensor([0, 3, 2], device=device),
        "positions": torch.tensor([2**40, 10, 999], device=device),
    }
    names = ("seeds", "choices", "positions")
    expected = uniform(*(arguments[name].cpu() for name in names))
    tokens = sample(**arguments).cpu()
    assert torch.equal(tokens, (expected * 1000).ceil().long() - 1)


def test_tokens_are_those_of_the_torch_op(device: torch.device) -> None:
    """Rows of every kind in one launch: ties, NaN, tokens forbidden, filters beyond their sense."""
    logits = draw(8, 200)
    logits[1] = logits[1].round()
    logits[2, ::3], logits[3, 1:], logits[4] = torch.nan, -torch.inf, torch.nan
    logits[5, 7], logits[6] = torch.inf, -0.0
    columns: dict[str, Tensor] = {
        "temperature": torch.tensor([1.0, 3.0, 0.0, 2.0, 1.0, 1.0, 0.7, 1e-5]),
        "top_k": torch.tensor([0, 9, 0, 2**31 - 1, 0, 0, 150, 0], dtype=torch.int32),
        "top_p": torch.tensor([1.0, 0.8, 1.0, 1e-9, 1.0, 1.0, 1.0, 1.0]),
        "min_p": torch.tensor([0.0, 0.3, 0.0, 2.0, 0.0, 1e-30, 0.0, 1.0]),
        "seeds": torch.tensor([1, -1, 3, 2**63 - 1, 5, -(2**63), 7, 8]),
        "choices": torch.arange(8),
        "positions": torch.arange(8) * 10_000,
    }
    expected = sampling.sample(logits, **columns)
    there = {name: column.to(device) for name, column in columns.items()}
    assert sample(logits.to(device), **there).tolist() == expected.tolist()


def test_the_kernel_is_launched_and_measured_without_fused_products(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """The interpreter fuses nothing, so no other test would see it."""
    launched: list[dict[str, Any]] = []

    class Recorded:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *_, **how: launched.append(how)

    monkeypatch.setattr(hopper_sampling, "sample_kernel", Recorded())
    sample(**Rows(draw(1, 9)).arguments(device))
    (specialisation,) = hopper_sampling.SPECIALISATIONS
    assert launched[0]["enable_fp_fusion"] is False
    assert specialisation.options == {"enable_fp_fusion": False}


@pytest.mark.check
def test_the_compiled_kernel_fuses_no_product_with_a_sum() -> None:
    program = """
import triton
from kernels.hopper.sampling import SPECIALISATIONS
from kernels.hopper.specialisation import HOPPER, _source
one, = SPECIALISATIONS
options = {"num_warps": one.warps, "num_stages": one.stages, **one.options}
print(triton.compile(_source(one), target=HOPPER, options=options).asm["ptx"])
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "mul.rn.f32" in done.stdout and "add.rn.f32" in done.stdout
    assert "fma" not in done.stdout and "ex2" not in done.stdout


def test_no_rows_give_no_tokens(device: torch.device) -> None:
    assert sample(**Rows(torch.zeros(0, 5)).arguments(device)).shape == (0,)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"logits": torch.zeros(2, 9).double()}, "logits is float64; must be float32"),
        ({"logits": torch.zeros(2, 0)}, "logits has a vocabulary of 0"),
        ({"logits": torch.zeros(9, 2).T}, "logits has strides"),
        ({"top_k": torch.zeros(2, dtype=torch.int64)}, "top_k is int64; must be int32"),
        ({"seeds": torch.zeros(3, dtype=torch.int64)}, r"seeds has shape \[3\]; it must be \[2\]"),
    ],
)
def test_unsupported_arguments_are_named(
    changed: dict[str, Tensor], message: str, device: torch.device
) -> None:
    arguments = Rows(torch.zeros(2, 9)).arguments(device)
    arguments |= {name: value.to(device) for name, value in changed.items()}
    with pytest.raises(ValueError, match=message):
        sample(**arguments)
