"""What launchers check of their arguments before a kernel sees them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: Sequence[int | None],
    dtypes: Sequence[torch.dtype],
    *,
    like: Tensor | None = None,
    unit_stride: bool = True,
) -> None:
    """Raises ValueError unless the tensor is what a kernel supports, naming what is allowed.

    shape: None stands for any size. like: a tensor on whose device it must be; without, any CUDA
    device, or the CPU under TRITON_INTERPRET=1. unit_stride: its last dimension is contiguous.
    """
    sizes = tuple(tensor.shape)
    if len(sizes) != len(shape) or any(
        want not in (None, have) for want, have in zip(shape, sizes, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {list(sizes)}; it must be [{wanted}]")
    if tensor.dtype not in dtypes:
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}; must be {allowed}")
    if unit_stride and sizes and sizes[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} has strides {tensor.stride()}; the last must be 1")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}; it must be on {like.device}")
    if tensor.device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ValueError(f"{name} is on {tensor.device}; it must be on a CUDA device")


def check_choice(name: str, value: int, allowed: Sequence[int]) -> None:
    """Raises ValueError unless value is one of the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name} is {value}; allowed are {', '.join(map(str, allowed))}")
