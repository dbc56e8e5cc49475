"""Linear layers, norms and rotary embedding shared by attention, indexer and MoE."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import ModelConfig
from training.quantisation import fake_quantise


class Linear(nn.Module):
    """y = x W^T without bias; fp32 master weight, computed in the dtype of x.

    With `quantise` set the forward pass sees the weight rounded to FP8 blocks as the exported
    checkpoint stores it; the gradient passes straight through.
    """

    def __init__(self, in_features: int, out_features: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * gain / in_features**0.5)
        self.quantise = False

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """scale * x W^T [..., out]; the scale goes to the weight, which is the smaller factor."""
        weight = fake_quantise(self.weight) if self.quantise else self.weight
        if scale != 1.0:
            weight = weight * scale
        return F.linear(x, weight.to(x.dtype))


class RMSNorm(nn.Module):
    """w * x / sqrt(mean(x^2) + eps), computed in fp32 and cast to `dtype`."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps).to(dtype)


def inverse_frequencies(config: ModelConfig, yarn: bool) -> Tensor:
    """fp32 [rope_dim / 2] rotation per token of each pair; YaRN blends in frequency / factor."""
    dim, base = config.qk_rope_head_dim, config.rope_theta
    frequency = base ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if not yarn:
        return frequency

    def pair_with_turns(turns: float) -> float:
        length = config.original_max_position_embeddings
        return dim * math.log(length / (2 * math.pi * turns)) / (2 * math.log(base))

    low = max(math.floor(pair_with_turns(config.yarn_beta_fast)), 0)
    high = min(math.ceil(pair_with_turns(config.yarn_beta_slow)), dim - 1)
    width = (high - low) or 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequency / config.yarn_factor * ramp + frequency * (1 - ramp)


class Rotation:
    """cos and sin fp32 [B, T, 1, rope_dim / 2] of the positions of a batch."""

    def __init__(self, config: ModelConfig, positions: Tensor, yarn: bool) -> None:
        angle = positions.float().unsqueeze(-1) * inverse_frequencies(config, yarn)
        self.cos, self.sin = angle.cos().unsqueeze(2), angle.sin().unsqueeze(2)
        self.turn = torch.complex(self.cos, self.sin)

    def interleaved(self, x: Tensor) -> Tensor:
        """x [B, T, heads, rope_dim] with pairs (2i, 2i+1) rotated: the layout of MLA."""
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.turn).flatten(-2).to(x.dtype)

    def half_split(self, x: Tensor) -> Tensor:
        """x [B, T, heads, rope_dim], pairs (i, i + rope_dim/2) rotated: the indexer's layout."""
        left, right = x.float().chunk(2, -1)
        first, second = left * self.cos - right * self.sin, left * self.sin + right * self.cos
        return torch.cat((first, second), -1).to(x.dtype)


def hadamard_matrix(width: int) -> Tensor:
    """fp32 [width, width] Sylvester Hadamard matrix over sqrt(width): symmetric and orthogonal."""
    if width & (width - 1):
        raise ValueError(f"Hadamard width {width} is not a power of two")
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < width:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)), 0)
    return matrix / width**0.5
