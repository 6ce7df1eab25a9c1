"""What is timed: a linear on fixed inputs, or a whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

Array: TypeAlias = NDArray[Any]


COPIES = 8
"""Products that one call computes, each with weights, input and output of its own: what a linear takes in a model,
where weights come from further away and the call is shared."""


def several(weight: Array) -> list[Array]:
    """COPIES weights, the first as given. They differ: a runtime may keep equal ones once."""
    return [np.roll(weight, i, 0) for i in range(COPIES)]


@dataclass(frozen=True)
class Linear:
    """`run` computes x @ w^T COPIES times, and returns one of the products; `bits` a weight, 32 for float32. `size` is
    what one of them reads of weights and scales, in bytes. `summed`: products are summed as those of codes of so many
    bits can always be (0: of `bits`)."""

    bits: int
    size: int
    run: Callable[[], Array]
    summed: int = 0


@dataclass(frozen=True)
class Subject:
    """A model to compare by its first output. `calibration` and `judged` are inputs of the kind it is used on; `sized`
    makes inputs of (batch, tokens), for each of `shapes`; `meaning` makes of an output what is compared for fidelity.
    `heads` is the number of attention heads of a BERT encoder, 0 for anything else."""

    name: str
    module: nn.Module
    calibration: tuple[Mapping[str, Array], ...]
    judged: tuple[Mapping[str, Array], ...]
    sized: Callable[[int, int], Mapping[str, Array]]
    shapes: tuple[tuple[int, int], ...]
    meaning: Callable[[Array], Array]
    heads: int = 0
    hidden: int = 0

    @property
    def example(self) -> Mapping[str, Array]:
        """Two sequences for an encoder, so that neither axis is one; one for a recurrent model, whose first state the
        older ONNX exporter writes down with the size of the batch."""
        return self.sized(2 if self.heads else 1, 9)


Model: TypeAlias = Callable[[Mapping[str, Array]], Array]


class FirstOutput(nn.Module):
    """The first output alone, inputs by position: what exporters understand."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        found = self.module(**dict(zip(self.names, inputs, strict=True)))
        first: Tensor = found if isinstance(found, Tensor) else found[0]
        return first


def cosine(found: Array, exact: Array) -> float:
    """Of all numbers at once."""
    a, b = np.asarray(found, np.float64).ravel(), np.asarray(exact, np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
