"""Parts of decoders that stand in a lowered graph in place of the operators they were written with."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RootNorm(nn.Module):
    """x / sqrt(mean x^2 + epsilon) * weight over the last dimension (Zhang and Sennrich 2019, RMSNorm)."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach(), persistent=False)
        self.epsilon = epsilon

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.weight

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, epsilon={self.epsilon}"


class Rotary(nn.Module):
    """x cos + (-x2, x1) sin with x = (x1, x2) and x1 `first` wide (Su et al. 2021, rotary position embedding)."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned = torch.cat([-x[..., self.first :], x[..., : self.first]], -1)
        return x * cos + turned * sin
