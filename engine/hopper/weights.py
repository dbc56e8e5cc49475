"""Weights as the products take them: in FP8, kept as stored or quantised when they are not.

A checkpoint in FP8 keeps its bytes. Others are rounded at load, by blocks of 128 x 128 with scales
that are powers of two, as DeepSeek-V3.2 is published: there is no product of experts but in FP8.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.tensors import FP8_BLOCK, SCALE_SUFFIX
from kernels.fp8 import quantise_groups
from kernels.fp8_linear import dequantise_weight
from kernels.hopper.fixed_order_fp8_linear import fixed_order_fp8_linear
from kernels.hopper.fixed_order_linear import bfloat16_pieces, fixed_order_linear
from kernels.hopper.fp8_linear import fp8_linear


class Fp8Weight(NamedTuple):
    """A weight [N, K] by blocks."""

    values: Tensor
    """[N, K] float8_e4m3fn."""
    scales: Tensor
    """[ceil(N / 128), K / 128] float32."""

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """Returns the weight [N, K] in `dtype`."""
        return dequantise_weight(self.values, self.scales, dtype)


class Quantised(NamedTuple):
    """Activations [T, K] by groups of 128 channels."""

    values: Tensor
    """[T, K] float8_e4m3fn."""
    scales: Tensor
    """[T, K / 128] float32, any strides."""

    def rows(self, tokens: slice | Tensor) -> Quantised:
        """Returns some of the tokens.

        Scales are copied, tokens still contiguous: kernels are compiled for scales that begin at
        a multiple of 16 bytes, and anew for others.
        """
        if isinstance(tokens, slice):
            if tokens == slice(0, self.values.shape[0]):
                return self
            return Quantised(self.values[tokens], self.scales.T[:, tokens].contiguous().T)
        values = self.values.view(torch.uint8)[tokens].view(self.values.dtype)
        return Quantised(values, self.scales[tokens])


class Product:
    """y = x W^T with FP8 operands, added in float32.

    batch_invariant, here and below: a row's bits depend on that row alone.
    """

    def __init__(self, weight: Fp8Weight, *, batch_invariant: bool = False) -> None:
        self.weight, self.batch_invariant = weight, batch_invariant

    def __call__(self, x: Quantised, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Returns [T, N] in `dtype`."""
        product = fixed_order_fp8_linear if self.batch_invariant else fp8_linear
        return product(x.values, x.scales, self.weight.values, self.weight.scales, dtype)


class WideProduct:
    """y = x W^T in float32 of bfloat16 rows and a weight [N, K], bfloat16 or float32, as it is."""

    def __init__(self, weight: Tensor, *, batch_invariant: bool = False) -> None:
        self.batch_invariant = batch_invariant
        self.weight = bfloat16_pieces(weight)[:, None] if batch_invariant else weight

    def __call__(self, x: Tensor) -> Tensor:
        """Returns [T, N] float32; products are added in float32."""
        if self.batch_invariant:
            return fixed_order_linear(x[:, None], self.weight)[:, 0]
        if self.weight.dtype == torch.bfloat16 and x.device.type == "cuda":
            return torch.mm(x, self.weight.T, out_dtype=torch.float32)
        return F.linear(x.float(), self.weight.float())


def take(weights: dict[str, Tensor], name: str) -> Fp8Weight:
    """Takes `name`.weight out of the dict, with its scales if it has some; quantised if not."""
    values = weights.pop(f"{name}.weight")
    scales = weights.pop(f"{name}.weight{SCALE_SUFFIX}", None)
    return quantise_weight(values) if scales is None else Fp8Weight(values, scales)


def quantise_weight(weight: Tensor) -> Fp8Weight:
    """Returns a weight [N, K] by blocks of 128 x 128 with scales that are powers of two."""
    rows, columns = weight.shape
    padded = F.pad(weight, (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    blocks = padded.unflatten(1, (-1, FP8_BLOCK)).unflatten(0, (-1, FP8_BLOCK)).transpose(1, 2)
    values, scales = quantise_groups(blocks.flatten(2), FP8_BLOCK * FP8_BLOCK)
    whole = values.unflatten(2, (FP8_BLOCK, FP8_BLOCK)).transpose(1, 2).reshape(padded.shape)
    return Fp8Weight(whole[:rows, :columns].contiguous(), scales.squeeze(2))


def joined(*weights: Fp8Weight) -> tuple[Fp8Weight, list[slice]]:
    """Returns one weight for products of the same input, and the outputs of each.

    A block has one scale, so every weight but the last is filled up to whole blocks of rows; the
    published sizes need no filling in the order in which the engine joins them.
    """
    values, outputs, first = [], [], 0
    for number, weight in enumerate(weights):
        rows = weight.values.shape[0]
        outputs.append(slice(first, first + rows))
        filling = -rows % FP8_BLOCK if number + 1 < len(weights) else 0
        values.append(F.pad(weight.values.view(torch.uint8), (0, 0, 0, filling)))
        first += rows + filling
    whole = torch.cat(values).view(weights[0].values.dtype)
    return Fp8Weight(whole, torch.cat([weight.scales for weight in weights])), outputs
