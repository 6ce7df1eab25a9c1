"""Normalisations of a sum, in one pass over each row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tersor.backends.numba import ops
from tersor.backends.numba.decodermodules import RootNorm


def normalises_rows(norm: nn.LayerNorm) -> bool:
    """Whether it is over the last dimension only, with a weight and a bias."""
    return len(norm.normalized_shape) == 1 and norm.weight is not None and norm.bias is not None


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

    def __init__(self, norm: nn.LayerNorm | RootNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        z = x + other
        return z, self.norm(z)
