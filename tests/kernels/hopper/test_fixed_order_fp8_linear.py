"""Against float64 as `fp8_linear`, and bit by bit against itself with other rows beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.hopper.fixed_order_fp8_linear import fixed_order_fp8_linear, slabs_per_part
from kernels.hopper.fp8_linear import fp8_linear
from tests.kernels.hopper.test_fp8_linear import BLOCK, close, operands


@pytest.mark.parametrize(("tokens", "outputs"), [(1, 64), (130, 136)])
def test_both_ways_of_adding_match_float64(tokens: int, outputs: int, device: torch.device) -> None:
    """9 slabs in 2 parts: the second runs one slab over the end, where all must read as zero. The
    interpreter's 2 SMs give one tile's parts a program each, and two tiles' one."""
    assert slabs_per_part(outputs, 9) == 5
    parts = operands(tokens, 9 * BLOCK, outputs, device)
    close(fixed_order_fp8_linear(*parts, torch.float32), parts)


def fifth(product: Callable[..., Tensor], parts: tuple[Tensor, ...], rows: slice) -> Tensor:
    """What row 5 gives with `rows` of the operands in the batch."""
    x, x_scales, weight, weight_scales = parts
    found = product(x[rows], x_scales[rows], weight, weight_scales, torch.float32)
    return found[5 - rows.start].cpu()


def test_a_rows_bits_do_not_depend_on_the_batch(device: torch.device) -> None:
    """Nor on its place in it, nor on which programs add the parts."""
    parts = operands(130, 8 * BLOCK, 64, device)
    alone = fifth(fixed_order_fp8_linear, parts, slice(5, 6))
    for rows in (slice(0, 6), slice(3, 70), slice(0, 130)):
        assert torch.equal(fifth(fixed_order_fp8_linear, parts, rows), alone)
    assert not torch.equal(
        fifth(fp8_linear, parts, slice(5, 6)), fifth(fp8_linear, parts, slice(0, 130))
    ), "without a fixed order they do"


def test_parts_come_from_the_weights_shape() -> None:
    """The 671B model's products: of a layer's input, q_b, o, the shared expert's."""
    sizes = [(2240, 56), (24_576, 12), (7168, 128), (4096, 56), (7168, 16)]
    assert [slabs_per_part(*size) for size in sizes] == [8, 12, 64, 14, 8]


def test_no_tokens_give_no_rows(device: torch.device) -> None:
    x, x_scales, weight, weight_scales = operands(1, 128, 64, device)
    assert fixed_order_fp8_linear(x[:0], x_scales[:0], weight, weight_scales).shape == (0, 64)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(4, 256)}, "x is float32; must be float8_e4m3fn"),
        ({"dtype": torch.float64}, "dtype is torch.float64; allowed are"),
    ],
)
def test_unsupported_arguments_are_named(
    changed: dict[str, Any], message: str, device: torch.device
) -> None:
    names = ("x", "x_scales", "weight", "weight_scales")
    good = dict(zip(names, operands(4, 256, 64, device), strict=True))
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in changed.items()}
    with pytest.raises(ValueError, match=message):
        fixed_order_fp8_linear(**{**good, **moved})
