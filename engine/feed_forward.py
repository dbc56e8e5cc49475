"""A layer's feed-forward half: the dense MLP of the first layers, DeepSeekMoE in the others."""

from __future__ import annotations

from torch import Tensor

from engine.model_config import ModelConfig
from kernels.linear import Linear
from kernels.moe import SwiGlu, route, routed_experts


def dense_mlp(weights: dict[str, Tensor], *, batch_invariant: bool = False) -> SwiGlu:
    """Returns the MLP of weights named gate_proj, up_proj and down_proj."""
    names = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
    return SwiGlu(*(weights[name] for name in names), batch_invariant=batch_invariant)


class MoE:
    """Routed experts weighted by the router, plus the always-on shared expert, unscaled."""

    def __init__(
        self, config: ModelConfig, weights: dict[str, Tensor], *, batch_invariant: bool = False
    ) -> None:
        def mlp(prefix: str) -> SwiGlu:
            names = [name for name in weights if name.startswith(prefix)]
            own = {name.removeprefix(prefix): weights.pop(name) for name in names}
            return dense_mlp(own, batch_invariant=batch_invariant)

        self.config, self.batch_invariant = config, batch_invariant
        self.gate = Linear(weights["gate.weight"], batch_invariant=batch_invariant)
        self.correction_bias = weights["gate.e_score_correction_bias"]
        self.experts = [mlp(f"experts.{e}.") for e in range(config.n_routed_experts)]
        self.shared = mlp("shared_experts.")

    def __call__(self, x: Tensor) -> Tensor:
        config = self.config
        experts, weights = route(
            self.gate(x.float()),
            self.correction_bias,
            groups=config.n_group,
            kept_groups=config.topk_group,
            top_k=config.num_experts_per_tok,
            scaling=config.routed_scaling_factor,
            normalise=config.norm_topk_prob,
            batch_invariant=self.batch_invariant,
        )
        routed = routed_experts(x, experts, weights, self.experts)
        return (routed + self.shared(x).float()).to(x.dtype)
