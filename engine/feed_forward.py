"""Feed-forward layers: the dense MLP of the first layers, DeepSeekMoE in the others."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.model_config import ModelConfig
from kernels.moe import route, routed_experts, swiglu


class DenseMlp:
    """down(silu(gate x) * up x)."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.gate_up = torch.cat((weights["gate_proj.weight"], weights["up_proj.weight"]))
        self.down = weights["down_proj.weight"]

    def __call__(self, x: Tensor) -> Tensor:
        return swiglu(x, self.gate_up, self.down)


class MoE:
    """Routed experts weighted by the router, plus the always-on shared expert, unscaled."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor]) -> None:
        self.config = config
        self.gate = weights["gate.weight"]
        self.correction_bias = weights["gate.e_score_correction_bias"]
        names = [f"experts.{e}." for e in range(config.n_routed_experts)]
        self.gate_up = torch.stack(
            [
                torch.cat((weights[n + "gate_proj.weight"], weights[n + "up_proj.weight"]))
                for n in names
            ]
        )
        self.down = torch.stack([weights[n + "down_proj.weight"] for n in names])
        prefix = "shared_experts."
        self.shared = DenseMlp(
            {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        )

    def __call__(self, x: Tensor) -> Tensor:
        config = self.config
        experts, weights = route(
            x,
            self.gate,
            self.correction_bias,
            groups=config.n_group,
            kept_groups=config.topk_group,
            top_k=config.num_experts_per_tok,
            scaling=config.routed_scaling_factor,
            normalise=config.norm_topk_prob,
        )
        routed = routed_experts(x, experts, weights, self.gate_up, self.down)
        return (routed + self.shared(x).float()).to(x.dtype)
