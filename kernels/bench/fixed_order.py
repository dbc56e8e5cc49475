"""Cases of products whose rows' bits depend on the row alone: the price of batch invariance, since
`products` has cases of the same shapes without that promise."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.bench.case import (
    EXPERT_WIDTH,
    EXPERTS,
    HEADS,
    HIDDEN,
    INDEX_HEADS,
    LATENT,
    NOPE,
    QUERY_RANK,
    ROPE,
    VALUE,
    VOCABULARY,
    Case,
    Prepared,
    Work,
    difference,
    normal,
    some_rows,
)
from kernels.bench.products import FEW, MANY, TOLERANCE, linear_case
from kernels.hopper.fixed_order_linear import PIECES, bfloat16_pieces, fixed_order_linear


def cases() -> Iterator[Case]:
    """Yields the cases of this file's ops."""
    for tokens in (MANY, FEW):
        for outputs, inputs in (
            (HEADS * (NOPE + ROPE), QUERY_RANK),
            (HIDDEN, HEADS * VALUE),
            (2 * EXPERT_WIDTH, HIDDEN),
        ):
            quick = outputs == HIDDEN
            yield linear_case(tokens, outputs, inputs, None, quick=quick, fixed_order=True)
        yield product_case("absorb W_UK", HEADS, tokens, NOPE, LATENT, quick=True)
        yield product_case("absorb W_UV", HEADS, tokens, LATENT, VALUE)
        for name, outputs in (("index head weights", INDEX_HEADS), ("router", EXPERTS)):
            yield product_case(name, 1, tokens, HIDDEN, outputs, torch.float32)
    yield product_case("head", 1, FEW, HIDDEN, VOCABULARY)


def product_case(
    name: str,
    groups: int,
    tokens: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    quick: bool = False,
) -> Case:
    """A product of bfloat16 rows; dtype: the weight's and the result's. FLOPs are those of
    `products.product_case`, bytes those of a float32 weight's three pieces."""

    def prepare(device: torch.device) -> Prepared:
        x = normal(tokens, groups, inputs, device=device)
        weight = normal(groups, outputs, inputs, device=device, dtype=dtype)
        pieces, some = bfloat16_pieces(weight), some_rows(tokens, device)

        def run() -> Tensor:
            return fixed_order_linear(x, pieces, dtype)

        def error() -> float:
            return difference(run()[some, -1], x[some, -1].double() @ weight[-1].double().T)

        return Prepared(run, error)

    size = dtype.itemsize
    weights = inputs * outputs * (PIECES if dtype == torch.float32 else 1)
    moved = groups * (2 * tokens * inputs + 2 * weights + size * tokens * outputs)
    work = Work(2 * groups * tokens * inputs * outputs, moved, "bf16")
    kind = str(dtype).removeprefix("torch.")
    shape = f"{name}, {tokens} tokens, {kind}"
    return Case("fixed_order_linear", shape, work, prepare, TOLERANCE, quick=quick)
