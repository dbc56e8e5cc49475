"""Muon for stacks of matrices: momentum, orthogonalised by Newton-Schulz, all alike ones at once.

torch.optim.Muon takes single matrices only; with 16 experts in five layers its loop of small
products costs as much as the training step itself on a CPU, so equal shapes are batched here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from training.parallel import gather_rows, share_rows

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """[N, rows, columns] with singular values near one, by a quintic Newton-Schulz iteration."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices.bfloat16() if wide else matrices.bfloat16().transpose(-1, -2)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.transpose(-1, -2)
        square = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, square, x, beta=a)
    return x if wide else x.transpose(-1, -2)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, decoupled weight decay and updates of RMS 0.2 * lr.

    Parameters are [out, in] or stacks [N, out, in]. Source: K. Jordan et al., Muon (2024); the
    update scale is that of Moonlight (2025).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[(parameter.shape[-2], parameter.shape[-1])].append(parameter)
            for shape, parameters in alike.items():
                self._update(shape, parameters, group)

    def _update(
        self, shape: tuple[int, int], parameters: list[nn.Parameter], group: dict[str, Any]
    ) -> None:
        directions = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            momentum = state.setdefault("momentum", torch.zeros_like(parameter))
            momentum.lerp_(parameter.grad, 1 - group["momentum"])
            directions.append(parameter.grad.lerp(momentum, group["momentum"]).view(-1, *shape))
        stacked = torch.cat(directions)
        mine, counts = share_rows(stacked.shape[0])
        updates = gather_rows(orthogonalise(stacked[mine.start : mine.stop]), counts).float()
        scale = 0.2 * max(shape) ** 0.5 * group["lr"]
        sizes = [direction.shape[0] for direction in directions]
        for parameter, update in zip(parameters, updates.split(sizes), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(update.view_as(parameter), alpha=scale)
