from __future__ import annotations

from dataclasses import replace

import pytest
import triton
import triton.language as tl

from kernels.hopper.specialisation import (
    Budget,
    Resources,
    Specialisation,
    broken_limits,
    compile_for_hopper,
    ctas_per_sm,
)


@triton.jit
def copy_kernel(source, target, N: tl.constexpr):
    tl.store(target + tl.arange(0, N), tl.load(source + tl.arange(0, N)))


COPY = Specialisation(
    name="copy",
    kernel=copy_kernel,
    signature={"source": "*fp32", "target": "*fp32"},
    constants={"N": 128},
    aligned=("source", "target"),
    warps=4,
    stages=1,
    budget=Budget(registers=64, shared_bytes=0, ctas_per_sm=8, mma=None),
)
USED = Resources(64, 0, 1024, 8, {"HGMMA": 2})


@pytest.mark.parametrize(
    ("registers", "shared_bytes", "threads", "expected"),
    [
        (255, 0, 256, 1),  # 256 registers for each of 8 warps: one CTA takes the whole file
        (128, 0, 256, 2),
        (129, 0, 256, 1),  # given in units of 8 a thread
        (32, 0, 32, 32),  # no more than 32 CTAs
        (32, 0, 1024, 2),  # no more than 2,048 threads
        (32, 113 * 1024, 128, 2),
        (32, 114 * 1024, 128, 1),  # with 1 KiB that the system takes of each
        (32, 227 * 1024, 128, 1),
        (32, 227 * 1024 + 1, 128, 0),
    ],
)
def test_occupancy_follows_the_rules(
    registers: int, shared_bytes: int, threads: int, expected: int
) -> None:
    assert ctas_per_sm(registers, shared_bytes, threads) == expected


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        (replace(USED, registers=65), "65 registers; the budget is 64"),
        (replace(USED, spilled_bytes=8), "spills 8 bytes"),
        (replace(USED, instructions={"HGMMA": 1, "STL": 1}), "must not spill"),
        (replace(USED, shared_bytes=1025), "1025 shared bytes; the budget is 1024"),
        (replace(USED, ctas_per_sm=7), "7 CTAs an SM; the budget is 8"),
        (replace(USED, instructions={"HMMA": 9}), "no HGMMA instruction"),
    ],
)
def test_each_broken_limit_is_named(resources: Resources, sentence: str) -> None:
    budget = Budget(registers=64, shared_bytes=1024, ctas_per_sm=8, mma="HGMMA")
    assert broken_limits(budget, USED) == []
    (found,) = broken_limits(budget, resources)
    assert sentence in found


def test_arguments_must_be_those_of_the_kernel() -> None:
    with pytest.raises(ValueError, match=r"copy: signature and constants .* \['target'\]"):
        compile_for_hopper(replace(COPY, signature={"source": "*fp32"}))
    with pytest.raises(ValueError, match="M"):
        compile_for_hopper(replace(COPY, constants={"N": 128, "M": 1}))
    with pytest.raises(ValueError, match=r"aligned names \['N'\]"):
        compile_for_hopper(replace(COPY, aligned=("N",)))


@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="kernels are compiled here")
def test_interpreted_kernels_are_not_compiled() -> None:
    with pytest.raises(RuntimeError, match="interpreted, not compiled"):
        compile_for_hopper(COPY)
