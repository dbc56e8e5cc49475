"""y = x W^T with the weight laid out once for the machine it runs on.

On x86 CPUs float32 weights are packed by MKL at load: products of a few rows would otherwise
pack the whole weight again every time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED_ROWS = 16
"""Rows of x that MKL's packing is laid out for; any number of rows may use it."""
ROW_TILE = 8
"""Fewest rows of a product whose rows do not depend on their number: one row is a matrix-vector
product, which adds in another order, and a few take other kernels."""


class Linear:
    """A weight [out, in] as an operator on rows.

    batch_invariant: each row's result depends on that row alone, to the last bit, and not on how
    many rows there are. With a packed weight that takes at least ROW_TILE rows; without, every
    product has exactly ROW_TILE rows.
    """

    def __init__(self, weight: Tensor, *, batch_invariant: bool = False) -> None:
        self.out_features, self.in_features = weight.shape
        self.batch_invariant = batch_invariant
        self.device, self.dtype = weight.device, weight.dtype
        self.packed = _packs(weight)
        if self.packed:
            # The packed weight keeps no shape; the operator reads it from a tensor without memory.
            self.shape_only = torch.empty(1).expand(weight.shape)
            weight = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), PACKED_ROWS)
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """Returns [T, out] for x [T, in] of the weight's dtype."""
        if not self.batch_invariant:
            return self._product(x)
        rows = x.shape[0]
        if self.packed:
            if rows < ROW_TILE:
                return self._product(F.pad(x, (0, 0, 0, ROW_TILE - rows)))[:rows]
            return self._product(x)
        tiles = F.pad(x, (0, 0, 0, -rows % ROW_TILE)).split(ROW_TILE)
        return torch.cat([self._product(tile) for tile in tiles])[:rows]

    def _product(self, x: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkl._mkl_linear(x, self.weight, self.shape_only, None, x.shape[0])
        return F.linear(x, self.weight)


def _packs(weight: Tensor) -> bool:
    """Whether this torch build can pack the weight."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkl.is_available()
        and hasattr(torch.ops.mkl, "_mkl_linear")
    )


def grouped_product(x: Tensor, weights: Tensor, *, batch_invariant: bool = False) -> Tensor:
    """Returns x_g W_g [G, T, out] for x [G, T, in] and weights [G, in, out].

    batch_invariant as for Linear, with at least 2 ROW_TILE rows, since these are not packed.
    """
    rows = x.shape[1]
    if batch_invariant and rows < 2 * ROW_TILE:
        return (F.pad(x, (0, 0, 0, 2 * ROW_TILE - rows)) @ weights)[:, :rows]
    return x @ weights
