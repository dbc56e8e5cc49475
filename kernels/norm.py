"""RMSNorm and LayerNorm, computed in float32 and rounded once."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns weight * x / sqrt(mean(x^2) + eps) in x's dtype.

    x [..., D] any float dtype; weight [D] float32.
    """
    wide = x.float()
    # A handful of values per row; the two passes over x are what costs.
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = norm.mul_(norm).mul_(1 / x.shape[-1]).add_(eps).sqrt_()
    return (wide * weight).div_(scale).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Returns the LayerNorm (mean and variance, with bias) of x in x's dtype.

    x [..., D] any float dtype; weight, bias [D] float32.
    """
    normed = torch.nn.functional.layer_norm(x.float(), (x.shape[-1],), weight, bias, eps)
    return normed.to(x.dtype)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return weight * centred / torch.sqrt(variance + eps) + bias
