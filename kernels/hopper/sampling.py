# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Sampling without a sort, one program per row: every filter is a search for a threshold.

In the order of falling logits each filter keeps a prefix, and so a prefix's mass says which it is.
Masses are whole numbers: their sums do not depend on the order of adding, so that all thresholds
agree. A search fixes two bits of the threshold in each pass over the row, which stays in the L2
cache.

Every operation on a likelihood is the torch op's, and the kernel is compiled without fusing any
product with a sum: its tokens are those of the CPU, bit for bit.

Source: as `kernels.sampling`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hopper.arguments import check_tensor
from kernels.hopper.specialisation import Budget, Specialisation
from kernels.sampling import (
    EXP2,
    GREEDY_TEMPERATURE,
    LARGEST_LOGIT,
    LEAST_POWER,
    LOG2_E,
    UNIT,
)

_COLUMNS, _ROWS = 2048, 4
"""Masses of the _ROWS tokens in a column add in 32 bits."""
_WARPS = 16
_OPTIONS = {"enable_fp_fusion": False}
_LARGEST, _LEAST_POWER = tl.constexpr(LARGEST_LOGIT), tl.constexpr(LEAST_POWER)
_LOG2_E = tl.constexpr(LOG2_E)
_E1, _E2, _E3, _E4, _E5 = (tl.constexpr(coefficient) for coefficient in EXP2)


@triton.jit
def _uniform(seed, choice, position):
    """`kernels.sampling.uniform` of int64 scalars."""
    state = (seed * 0).to(tl.uint64)
    for argument in tl.static_range(3):
        value = seed
        if argument == 1:
            value = choice
        if argument == 2:
            value = position
        state = state + value.to(tl.uint64) + 0x9E3779B97F4A7C15
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB
        state = state ^ (state >> 31)
    return ((state >> 12).to(tl.float64) + 0.5) * 2.220446049250313e-16


@triton.jit
def _read(row, token, vocabulary):
    """Logits of tokens within the limits, the least for NaN and behind the vocabulary, and uint32
    keys in their order."""
    logit = tl.load(row + token, mask=token < vocabulary, other=-float("inf"))
    logit = tl.where(logit == logit, logit, -float("inf"))
    logit = tl.minimum(tl.maximum(logit, -_LARGEST), _LARGEST) + 0.0  # one zero only
    bits = logit.to(tl.int32, bitcast=True)
    return logit, (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)


@triton.jit
def _logit_of(key):
    """The logit of a key."""
    bits = key.to(tl.int32, bitcast=True)
    return (bits ^ (((bits >> 31) ^ -1) | -2147483648)).to(tl.float32, bitcast=True)


@triton.jit
def _likelihood(logit, largest, rate):
    """exp(logit - largest) at the temperature; rate = log2(e) / temperature."""
    power = tl.maximum((logit - largest) * rate, _LEAST_POWER)
    whole = tl.floor(power + 0.5)
    x = power - whole
    polynomial = ((((x * _E5 + _E4) * x + _E3) * x + _E2) * x + _E1) * x + 1.0
    return polynomial * ((whole.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _units(likelihood, UNIT: tl.constexpr):
    return (likelihood * UNIT + 0.5).to(tl.uint32)


@triton.jit
def _threshold(
    row,
    vocabulary,
    largest,
    rate,
    target,
    COUNT: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """(t, above): t is the largest key such that tokens of keys >= t weigh at least the target,
    above the weight of keys > t. COUNT: a token weighs 1, else its mass."""
    tile = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    none = tl.full([COLUMNS], 0, tl.int64)
    found = (target * 0).to(tl.uint32)
    above = target * 0
    for step in tl.range(16):
        digit = (found * 0 + 1) << (30 - 2 * step)
        one, two, three = found | digit, found | (digit * 2), found | (digit * 3)
        from_one, from_two, from_three = none, none, none
        for first in tl.range(0, vocabulary, ROWS * COLUMNS):
            token = first + tile
            logit, key = _read(row, token, vocabulary)
            if COUNT:
                weight = (token < vocabulary).to(tl.uint32)
            else:
                weight = _units(_likelihood(logit, largest, rate), UNIT)
            from_one += tl.sum(tl.where(key >= one, weight, 0), 0).to(tl.int64)
            from_two += tl.sum(tl.where(key >= two, weight, 0), 0).to(tl.int64)
            from_three += tl.sum(tl.where(key >= three, weight, 0), 0).to(tl.int64)
        weight_one = tl.sum(from_one, 0)
        weight_two = tl.sum(from_two, 0)
        weight_three = tl.sum(from_three, 0)
        if weight_three >= target:
            found = three
        elif weight_two >= target:
            found = two
            above = weight_three
        elif weight_one >= target:
            found = one
            above = weight_two
        else:
            above = weight_one
    return found, above


@triton.jit
def sample_kernel(
    logits,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    seeds,
    choices,
    positions,
    tokens,
    vocabulary,
    stride,
    GREEDY: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program per row of logits, which it reads once per pass."""
    sequence = tl.program_id(0)
    row = logits + sequence.to(tl.int64) * stride
    tile = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tops = tl.full([COLUMNS], -float("inf"), tl.float32)
    for first in tl.range(0, vocabulary, ROWS * COLUMNS):
        logit, _keys = _read(row, first + tile, vocabulary)
        tops = tl.maximum(tops, tl.max(logit, 0))
    largest = tl.max(tops, 0)
    bits = largest.to(tl.int32, bitcast=True)
    pivot = (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)
    nth = (sequence * 0 + 1).to(tl.int64)
    temperature = tl.load(temperatures + sequence)
    if temperature >= GREEDY:
        rate = tl.div_rn(_LOG2_E, temperature)
        min_p = tl.load(min_ps + sequence)
        masses = tl.full([COLUMNS], 0, tl.int64)
        for first in tl.range(0, vocabulary, ROWS * COLUMNS):
            token = first + tile
            logit, _keys = _read(row, token, vocabulary)
            likelihood = _likelihood(logit, largest, rate)
            likely = (likelihood >= min_p) & (token < vocabulary)
            masses += tl.sum(tl.where(likely, _units(likelihood, UNIT), 0), 0).to(tl.int64)
        # The most likely token is kept even by a min_p above 1.
        kept = tl.maximum(tl.sum(masses, 0), UNIT)
        top_k = tl.load(top_ks + sequence).to(tl.int64)
        if (top_k > 0) & (top_k < vocabulary):
            key, count = _threshold(
                row, vocabulary, largest, rate, top_k, True, UNIT, ROWS, COLUMNS
            )
            masses = tl.full([COLUMNS], 0, tl.int64)
            for first in tl.range(0, vocabulary, ROWS * COLUMNS):
                logit, keys = _read(row, first + tile, vocabulary)
                mass = _units(_likelihood(logit, largest, rate), UNIT)
                masses += tl.sum(tl.where(keys > key, mass, 0), 0).to(tl.int64)
            tie = _units(_likelihood(_logit_of(key), largest, rate), UNIT).to(tl.int64)
            kept = tl.minimum(kept, tl.sum(masses, 0) + (top_k - count) * tie)
        top_p = tl.load(top_ps + sequence)
        if top_p < 1.0:
            # The last token kept is the first at which the mass reaches top_p.
            target = tl.ceil(kept.to(tl.float64) * top_p.to(tl.float64)).to(tl.int64)
            target = tl.maximum(target, 1)
            key, mass = _threshold(
                row, vocabulary, largest, rate, target, False, UNIT, ROWS, COLUMNS
            )
            tie = _units(_likelihood(_logit_of(key), largest, rate), UNIT).to(tl.int64)
            kept = mass + tl.cdiv(target - mass, tl.maximum(tie, 1)) * tie
        noise = _uniform(
            tl.load(seeds + sequence), tl.load(choices + sequence), tl.load(positions + sequence)
        )
        target = tl.ceil(kept.to(tl.float64) * noise).to(tl.int64)
        pivot, mass = _threshold(row, vocabulary, largest, rate, target, False, UNIT, ROWS, COLUMNS)
        tie = _units(_likelihood(_logit_of(pivot), largest, rate), UNIT).to(tl.int64)
        nth = tl.cdiv(target - mass, tl.maximum(tie, 1))
    # The nth token of this key: the block that holds it, the row of the block, and the place there.
    before = nth * 0
    block = sequence * 0
    in_rows = tl.full([ROWS], 0, tl.int32)
    for first in tl.range(0, vocabulary, ROWS * COLUMNS):
        if before < nth:
            token = first + tile
            _logits, keys = _read(row, token, vocabulary)
            nth -= before
            in_rows = tl.sum(((keys == pivot) & (token < vocabulary)).to(tl.int32), 1)
            before = tl.sum(in_rows, 0).to(tl.int64)
            block = first + sequence * 0
    until = tl.cumsum(in_rows, 0)
    passed = until < nth
    token = block + tl.sum(passed.to(tl.int32), 0) * COLUMNS + tl.arange(0, COLUMNS)
    _logits, keys = _read(row, token, vocabulary)
    equal = (keys == pivot) & (token < vocabulary)
    place = tl.cumsum(equal.to(tl.int32), 0) + tl.max(tl.where(passed, until, 0), 0)
    tl.store(tokens + sequence, tl.sum(tl.where(equal & (place == nth), token, 0), 0).to(tl.int64))


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    choices: Tensor,
    positions: Tensor,
) -> Tensor:
    """Returns one token per row [S] int64, by the contract of `kernels.sampling.sample`.

    logits [S, vocabulary] float32, vocabulary contiguous; temperature, top_p, min_p [S] float32;
    top_k [S] int32; seeds, choices, positions [S] int64; all on the device, which is not waited
    for. A row without a finite logit gives some token of the vocabulary. Raises ValueError for
    other arguments.
    """
    check_tensor("logits", logits, (None, None), (torch.float32,))
    rows, vocabulary = logits.shape
    if not vocabulary:
        raise ValueError("logits has a vocabulary of 0; at least 1 is needed")
    of_row: tuple[tuple[str, Tensor, torch.dtype], ...] = (
        ("temperature", temperature, torch.float32),
        ("top_k", top_k, torch.int32),
        ("top_p", top_p, torch.float32),
        ("min_p", min_p, torch.float32),
        ("seeds", seeds, torch.int64),
        ("choices", choices, torch.int64),
        ("positions", positions, torch.int64),
    )
    for name, tensor, dtype in of_row:
        check_tensor(name, tensor, (rows,), (dtype,), like=logits)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        columns = min(_COLUMNS, max(16, triton.next_power_of_2(vocabulary)))
        sample_kernel[(rows,)](
            logits,
            temperature,
            top_k,
            top_p,
            min_p,
            seeds,
            choices,
            positions,
            tokens,
            vocabulary,
            logits.stride(0),
            GREEDY=GREEDY_TEMPERATURE,
            UNIT=UNIT,
            ROWS=_ROWS,
            COLUMNS=columns,
            num_warps=_WARPS,
            **_OPTIONS,
        )
    return tokens


SPECIALISATIONS: tuple[Specialisation, ...] = (
    Specialisation(
        name="one row a program",
        kernel=sample_kernel,
        signature={
            "logits": "*fp32",
            "temperatures": "*fp32",
            "top_ks": "*i32",
            "top_ps": "*fp32",
            "min_ps": "*fp32",
            "seeds": "*i64",
            "choices": "*i64",
            "positions": "*i64",
            "tokens": "*i64",
            "vocabulary": "i32",
            "stride": "i32",
        },
        constants={"GREEDY": GREEDY_TEMPERATURE, "UNIT": UNIT, "ROWS": _ROWS, "COLUMNS": _COLUMNS},
        aligned=("logits", "vocabulary", "stride"),
        warps=_WARPS,
        stages=3,
        budget=Budget(128, 140_000, 1, None),
        options=_OPTIONS,
    ),
)
