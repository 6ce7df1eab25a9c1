"""One module after another."""

from __future__ import annotations

from torch import Tensor, nn


class InTurn(nn.Module):
    """y = second(first(x))."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y
