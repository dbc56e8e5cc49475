"""The normalised Hadamard rotation of index queries and keys.

It is orthogonal, so scores do not change in exact arithmetic; it spreads outliers over the channels
before FP8 rounding. Both sides are rotated, always: rotating one side destroys the scores.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.cache
def hadamard_matrix(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns the Sylvester (natural order) Hadamard matrix [width, width] / sqrt(width).

    Raises ValueError unless width is a power of two.
    """
    if width < 1 or width & (width - 1):
        raise ValueError(f"Hadamard width is {width}; it must be a power of two")
    # The cached matrix outlives an inference_mode() around the first call; made inside it, no
    # later backward pass could use it.
    with torch.inference_mode(False):
        matrix = torch.ones(1, 1, dtype=torch.float64)
        while matrix.shape[0] < width:
            matrix = torch.cat(
                (torch.cat((matrix, matrix), dim=1), torch.cat((matrix, -matrix), dim=1)), dim=0
            )
        return (matrix / width**0.5).to(device=device, dtype=dtype)


def hadamard(x: Tensor) -> Tensor:
    """Returns x rotated over its last dimension (a power of two), in x's dtype."""
    return x @ hadamard_matrix(x.shape[-1], x.dtype, x.device)


def hadamard_reference(x: Tensor) -> Tensor:
    """Entry (i, j) of the natural-order matrix is (-1)^popcount(i & j)."""
    width = x.shape[-1]
    signs = [[(-1.0) ** (i & j).bit_count() for j in range(width)] for i in range(width)]
    return x @ torch.tensor(signs, dtype=x.dtype) / width**0.5
