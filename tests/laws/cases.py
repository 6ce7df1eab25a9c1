"""Tensors and steps the laws are tried on."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.compiler.candidate import Step
from tersor.passes import METHODS

STEPS: tuple[Step, ...] = tuple(Step(method, point) for method in METHODS for point in method.examples())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outlier() -> Tensor:
    tensor = 0.02 * drawn(24, 96, seed=1)
    tensor[3, 5] = 40.0
    return tensor


TENSORS: dict[str, Tensor] = {
    "odd": drawn(13, 70),
    "transposed": drawn(70, 13, seed=9).t(),
    "one row": drawn(1, 129, seed=2),
    "one column": drawn(67, 1, seed=3),
    "one value": drawn(1, 1, seed=4),
    "constant": torch.full((9, 130), 0.3),
    "negative constant": torch.full((130, 9), -2.5),
    "zeros": torch.zeros(17, 66),
    "outlier": outlier(),
    "tiny": 1e-6 * drawn(20, 80, seed=5),
    "huge": 1e6 * drawn(20, 80, seed=6),
    "heavy tails": drawn(31, 65, seed=7).pow(3),
    "positive": drawn(12, 70, seed=8).abs() + 1,
}

SHAPES: tuple[tuple[int, ...], ...] = (
    (), (0,), (1,), (5,), (0, 3), (3, 0), (1, 1), (1, 7), (7, 1), (2, 2), (2, 3), (33, 70), (5, 128), (3, 4, 5),
)  # fmt: skip
