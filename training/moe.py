"""DeepSeekMoE: sigmoid routing with a selection bias, groups of experts, one shared expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import ModelConfig
from training.layers import Linear
from training.quantisation import fake_quantise


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)): the dense layer and the shared expert."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, width)
        self.up_proj = Linear(hidden_size, width)
        self.down_proj = Linear(width, hidden_size, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return output


class Router(nn.Module):
    """Chooses experts by sigmoid score plus bias, weighs them by the score alone."""

    e_score_correction_bias: Tensor
    load: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.randn(config.n_routed_experts, config.hidden_size) * 0.02)
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))
        self.register_buffer("load", torch.zeros(config.n_routed_experts), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(expert ids int64 [N, top], weights fp32 [N, top]) of the tokens x [N, hidden]."""
        config = self.config
        score = torch.sigmoid(F.linear(x.float(), self.weight))
        biased = (score + self.e_score_correction_bias).detach()
        groups = biased.unflatten(-1, (config.n_group, -1))
        kept = groups.topk(2, -1).values.sum(-1).topk(config.topk_group, -1).indices
        open_groups = torch.zeros_like(groups[..., 0], dtype=torch.bool).scatter_(-1, kept, True)
        biased = groups.masked_fill(~open_groups.unsqueeze(-1), float("-inf")).flatten(-2)
        chosen = biased.topk(config.num_experts_per_tok, -1).indices
        weight = score.gather(-1, chosen)
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20) * config.routed_scaling_factor
        return chosen, weight

    @torch.no_grad()
    def balance(self, rate: float) -> None:
        """Moves each bias by `rate` towards equal load, without any loss term, and resets the load.

        Source: DeepSeek-V3 report, auxiliary-loss-free load balancing.
        """
        self.e_score_correction_bias += rate * torch.sign(self.load.mean() - self.load)
        self.load.zero_()


EXPERT_ROWS = 64
"""Each expert's tokens are padded to a multiple of this.

The CPU library generates code for every shape of a matrix product that it has not seen, and the
experts' loads differ in every step; padded, few shapes are left.
"""


class Dispatch(torch.autograd.Function):
    """Rows of x [N, hidden] copied to their `top` experts' places: output [places, hidden].

    `source` [places] is the row of each place (any row where a place is padding), `place` [N * top]
    the place of each copy. A custom backward, because each row has exactly `top` copies: gathering
    and adding them is much cheaper than the scattered accumulation autograd would use.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, place: Tensor, top: int) -> Tensor:
        ctx.save_for_backward(place)
        ctx.top = top
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (place,) = ctx.saved_tensors
        gathered = gradients[0].index_select(0, place)
        return gathered.unflatten(0, (-1, ctx.top)).sum(1), None, None, None


class Collect(torch.autograd.Function):
    """Expert outputs [places, hidden] brought back to token order: [N * top, hidden]."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.places = y.shape[0]
        return y.index_select(0, place)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        spread = gradients[0].new_zeros(ctx.places, gradients[0].shape[1])
        return spread.index_copy_(0, place, gradients[0]), None


dispatch: Callable[[Tensor, Tensor, Tensor, int], Tensor] = Dispatch.apply
collect: Callable[[Tensor, Tensor], Tensor] = Collect.apply


class Experts(nn.Module):
    """The routed experts, stacked: gate and up [E, 2 * width, hidden], down [E, hidden, width]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, width = config.n_routed_experts, config.moe_intermediate_size
        scale = config.hidden_size**-0.5
        self.gate_up_proj = nn.Parameter(torch.randn(count, 2 * width, config.hidden_size) * scale)
        self.down_proj = nn.Parameter(torch.zeros(count, config.hidden_size, width))
        self.quantise = False

    def forward(self, x: Tensor, chosen: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(output [N, hidden], tokens per expert [E]); sorted by expert, no token is dropped."""
        top = chosen.shape[1]
        gate_up: Tensor = self.gate_up_proj
        down: Tensor = self.down_proj
        if self.quantise:
            gate_up, down = fake_quantise(gate_up), fake_quantise(down)
        gate_up, down = gate_up.to(x.dtype), down.to(x.dtype)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        load = torch.bincount(flat, minlength=gate_up.shape[0])
        room = (load + EXPERT_ROWS - 1) // EXPERT_ROWS * EXPERT_ROWS
        shift = (room - load).cumsum(0) - (room - load)
        sorted_place = torch.arange(order.numel()) + shift.repeat_interleave(load)
        place = torch.empty_like(order).scatter_(0, order, sorted_place)
        source = torch.zeros(int(room.sum()), dtype=torch.int64)
        source[sorted_place] = order // top
        parts = dispatch(x, source, place, top).split(room.tolist())
        outputs = []
        for part, first, second in zip(parts, gate_up.unbind(0), down.unbind(0), strict=True):
            gate, up = F.linear(part, first).chunk(2, -1)
            outputs.append(F.linear(F.silu(gate) * up, second))
        gathered = collect(torch.cat(outputs), place).unflatten(0, (-1, top))
        return (gathered * weight.to(x.dtype).unsqueeze(-1)).sum(1), load


class MoE(nn.Module):
    """Routed experts plus the shared expert."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        width = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = GatedMLP(config.hidden_size, width)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        chosen, weight = self.gate(flat)
        routed, load = self.experts(flat, chosen, weight)
        if self.training:
            self.gate.load.add_(load)
        output: Tensor = routed.view_as(x) + self.shared_experts(x)
        return output
