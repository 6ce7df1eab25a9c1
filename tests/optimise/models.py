"""A model small enough to search in a second, its data, and metrics on it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(300, 64), nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.embed(input_ids)
        out: Tensor = hidden + self.down(torch.relu(self.up(hidden)))
        return out


def tiny() -> tuple[Tiny, dict[str, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny().eval(), {"input_ids": torch.randint(300, (2, 7))}


def batches(count: int = 12) -> list[Mapping[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(300, (4, 9), generator=generator)} for _ in range(count)]


def closeness(module: nn.Module) -> float:
    """Cosine of the outputs to the original's."""
    model, example = tiny()
    with torch.no_grad():
        ours, theirs = module(**example), model(**example)
    return float(torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0))
