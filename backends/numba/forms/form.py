"""The contract between the backend and the kernels of one stored form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from tersor.backends.numba.features import Level
from tersor.compiler.stores import Store
from tersor.compiler.stores.affine import INPUT_GROUP


@dataclass(frozen=True)
class Target:
    """What kernels are made for: the CPU level, and how many columns of activations share a scale (0: the row; None: as
    many as the store says)."""

    level: Level
    activation_group: int | None = None

    def group(self, said: int = INPUT_GROUP) -> int:
        """Columns of activations that share a scale, for a store that says so many."""
        return said if self.activation_group is None else self.activation_group


class Form(ABC):
    """How stores of one kind become kernels."""

    def refuse(self, store: Store) -> str | None:
        """Why neither a linear nor an embedding can be made of it; None if both can. Looks at the description only."""
        return None

    @abstractmethod
    def linear(self, store: Store, bias: Tensor | None, target: Target) -> nn.Module:
        """A module x -> x @ w^T + bias; RequestError where the values turn out to have no kernel."""

    @abstractmethod
    def embedding(self, store: Store, target: Target) -> nn.Module:
        """A module index -> w[index]."""
