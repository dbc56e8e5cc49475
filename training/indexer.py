"""The lightning indexer, differentiable, and the loss that teaches it (report, eq. 1 to 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import ModelConfig
from training.layers import Linear, Rotation, hadamard_matrix


class Indexer(nn.Module):
    """Scores every earlier token for every query token with a few light heads."""

    hadamard: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.width = config.index_n_heads, config.index_head_dim
        self.rope_dim = config.qk_rope_head_dim
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.width)
        self.wk = Linear(config.hidden_size, self.width)
        self.k_norm = nn.LayerNorm(self.width, eps=1e-6)
        self.weights_proj = Linear(config.hidden_size, self.heads)
        self.register_buffer("hadamard", hadamard_matrix(self.width), persistent=False)

    def _rotate(self, x: Tensor, rotation: Rotation) -> Tensor:
        rotary, plain = x.split((self.rope_dim, self.width - self.rope_dim), -1)
        turned = torch.cat((rotation.half_split(rotary), plain), -1)
        return turned @ self.hadamard.to(x.dtype)

    def project(
        self, hidden: Tensor, query_latent: Tensor, rotation: Rotation
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(queries [B, heads, T, width], keys [B, 1, T, width], fp32 weights [B, heads, T, 1])."""
        query = self.wq_b(query_latent).unflatten(-1, (self.heads, self.width))
        key = self.k_norm(self.wk(hidden).float()).to(hidden.dtype).unsqueeze(2)
        query, key = self._rotate(query, rotation), self._rotate(key, rotation)
        weight = self.weights_proj(hidden.float()) * (self.heads * self.width) ** -0.5
        return query.transpose(1, 2), key.transpose(1, 2), weight.transpose(1, 2).unsqueeze(-1)

    @staticmethod
    def score(query: Tensor, key: Tensor, weight: Tensor) -> Tensor:
        """fp32 [B, T_query, T_key] index scores: sum over heads of weight * ReLU(query . key)."""
        products = F.relu(query @ key.transpose(-1, -2))
        return (products * weight.to(products.dtype)).sum(1, dtype=torch.float32)


def select_top_k(scores: Tensor, visible: Tensor, top_k: int) -> Tensor:
    """bool [B, T_query, T_key]: the top_k best visible keys of each query, all if there are fewer.

    Ties go anywhere here; the serving engine gives them to the lowest position.
    """
    if scores.shape[-1] <= top_k:
        return visible
    chosen = scores.masked_fill(~visible, float("-inf")).topk(top_k, dim=-1, sorted=False).indices
    return torch.zeros_like(visible).scatter_(-1, chosen, True) & visible


def index_loss(scores: Tensor, attention: Tensor, allowed: Tensor) -> Tensor:
    """Mean over queries of KL(target || softmax(scores)), both restricted to `allowed`.

    scores fp32 and attention (summed over heads, detached) are [B, T_query, T_key]; the target is
    attention divided by its sum. Rows with fewer than two allowed keys teach nothing and add zero.
    Source: DeepSeek-V3.2 report, eq. 3 (dense warm-up) and eq. 4 (selected set).
    """
    target = attention.float().masked_fill(~allowed, 0.0)
    target = target / target.sum(-1, keepdim=True).clamp_min(1e-9)
    log_predicted = torch.log_softmax(scores.masked_fill(~allowed, -1e9), dim=-1)
    return (target * (target.clamp_min(1e-9).log() - log_predicted)).sum(-1).mean()
