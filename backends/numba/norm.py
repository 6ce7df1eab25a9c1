"""Normalisations of a sum, in one pass over each row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tersor.backends.numba import ops
from tersor.backends.numba.decodermodules import RootNorm

Parameters = tuple[Tensor, Tensor | None, float]
"""Weight, bias and epsilon of a norm; without a bias it is by the root mean square."""


def parameters(norm: nn.Module) -> Parameters | None:
    """Those of a norm over the last dimension that has a weight, and a bias unless it is by the root mean square."""
    if isinstance(norm, RootNorm):
        return norm.weight, None, norm.epsilon
    if (
        not isinstance(norm, nn.LayerNorm)
        or len(norm.normalized_shape) != 1
        or norm.weight is None
        or norm.bias is None
    ):
        return None
    return norm.weight, norm.bias, norm.eps


class AddLayerNorm(nn.Module):
    """layer_norm(x + other) over the last dimension; x and other (..., n) of one shape or broadcast to one."""

    def __init__(self, norm: nn.LayerNorm, level: str) -> None:
        super().__init__()
        self.weight, self.bias, self.epsilon, self.level = norm.weight, norm.bias, norm.eps, level

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        if ops.direct(x) and ops.direct(other) and not (self.weight.requires_grad and torch.is_grad_enabled()):
            return ops.add_layer_norm(x, other, self.weight, self.bias, self.epsilon, self.level)
        y: Tensor = ops.layer_norm(x, other, self.weight, self.bias, self.epsilon, self.level)
        return y

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, epsilon={self.epsilon}, level={self.level}"


class SumNorm(nn.Module):
    """(z, norm(z)) with z = x + other, for a norm before a block, past which z goes on."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        z = x + other
        return z, self.norm(z)
