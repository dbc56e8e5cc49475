"""Data parallelism over single-threaded processes, one per core.

The operations of so small a model are too short to be split between threads: two processes that
meet once per step are faster than two threads that meet at every operation, above all on a machine
that does other work too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> tuple[int, int]:
    """(rank, number of workers); (0, 1) outside a process group."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the workers."""
    _, workers = world()
    if workers == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= workers
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, part in zip(gradients, flat.split(sizes), strict=True):
        gradient.copy_(part.view_as(gradient))


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replaces every tensor by its sum over the workers."""
    if world()[1] > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def share_rows(rows: int) -> tuple[range, list[int]]:
    """(the rows of this worker, the number of rows of each worker): contiguous, nearly equal."""
    rank, workers = world()
    sizes = [rows // workers + (index < rows % workers) for index in range(workers)]
    start = sum(sizes[:rank])
    return range(start, start + sizes[rank]), sizes


def gather_rows(own: Tensor, sizes: list[int]) -> Tensor:
    """The workers' rows of a tensor joined along the first axis, equal on every worker."""
    if len(sizes) == 1:
        return own
    largest = max(sizes)
    padded = own.new_zeros((largest, *own.shape[1:]))
    padded[: own.shape[0]] = own
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
