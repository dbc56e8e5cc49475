"""A layer's feed-forward half: dense SwiGLU, or routed experts with the shared one, all in FP8."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.hopper.weights import Fp8Weight, Product, Quantised, WideProduct, joined, take
from engine.model_config import ModelConfig
from kernels.hopper.quantise import NormedQuantised, swiglu_quantise
from kernels.hopper.routed_experts import routed_experts
from kernels.hopper.routing import route


class SwiGlu:
    """down(silu(gate x) * up x)."""

    def __init__(
        self, weights: dict[str, Tensor], prefix: str = "", *, batch_invariant: bool = False
    ) -> None:
        """weights: gate_proj and up_proj [W, hidden], down_proj [hidden, W], below `prefix`."""
        gate_up, _ = joined(take(weights, f"{prefix}gate_proj"), take(weights, f"{prefix}up_proj"))
        down = take(weights, f"{prefix}down_proj")
        self.gate_up, self.down = (
            Product(weight, batch_invariant=batch_invariant) for weight in (gate_up, down)
        )

    def __call__(self, x: NormedQuantised) -> Tensor:
        """Returns [T, hidden] bfloat16."""
        gate_up = self.gate_up(Quantised(x.values, x.scales))
        return self.down(Quantised(*swiglu_quantise(gate_up)))


class MoE:
    """Routed experts weighted by the router, plus the always-on shared expert, unscaled."""

    def __init__(
        self, config: ModelConfig, weights: dict[str, Tensor], *, batch_invariant: bool = False
    ) -> None:
        self.config, self.batch_invariant = config, batch_invariant
        self.gate = WideProduct(weights.pop("gate.weight"), batch_invariant=batch_invariant)
        self.correction_bias = weights.pop("gate.e_score_correction_bias")
        self.shared = SwiGlu(weights, "shared_experts.", batch_invariant=batch_invariant)
        self.gate_up, self.down = _stacked_experts(weights, config.n_routed_experts)

    def __call__(self, x: NormedQuantised, padding: Tensor | None) -> Tensor:
        """Returns [T, hidden] bfloat16; padding [T, 1] bool: tokens that no expert computes."""
        config = self.config
        assert x.normed is not None
        experts, weights = route(
            self.gate(x.normed),
            self.correction_bias,
            groups=config.n_group,
            kept_groups=config.topk_group,
            top_k=config.num_experts_per_tok,
            scaling=config.routed_scaling_factor,
            normalise=config.norm_topk_prob,
        )
        if padding is not None:
            experts.masked_fill_(padding, -1)
        return routed_experts(
            x.values,
            x.scales,
            experts,
            weights,
            *self.gate_up,
            *self.down,
            shared=self.shared(x),
            dtype=torch.bfloat16,
            batch_invariant=self.batch_invariant,
        )


def _stacked_experts(weights: dict[str, Tensor], count: int) -> tuple[Fp8Weight, Fp8Weight]:
    """Returns gate_up [E, 2 W, hidden] and down [E, hidden, W] with their scales.

    Experts leave the dict one by one as they are copied, so that a layer is held twice at most.
    """
    stacked: list[Fp8Weight] = []
    for expert in range(count):
        prefix = f"experts.{expert}."
        gate_up, _ = joined(take(weights, f"{prefix}gate_proj"), take(weights, f"{prefix}up_proj"))
        for place, one in enumerate((gate_up, take(weights, f"{prefix}down_proj"))):
            if expert == 0:
                empty = (part.new_empty(count, *part.shape) for part in one)
                stacked.append(Fp8Weight(*empty))
            for whole, part in zip(stacked[place], one, strict=True):
                whole[expert].copy_(part)
    return stacked[0], stacked[1]
