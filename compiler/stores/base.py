"""A store: a compressed tensor that answers what it stands for, computes with it, and knows its exact size.

Stores form trees. Composite stores (`affine`, `codebook`, `sparse`, `chain`) have named parts; the leaves are arrays:
`dense` (floating values) and `codes` (small integers). Composition is substitution: `prune(...) then kmeans(...)`
packs a sparse store and then replaces its open leaf, the kept values, by a codebook store.

Three forms of one tensor: the *resident* form is `arrays()` (codes one byte each, ready to compute), the *disk* form is
`state()` (bit-packed, what `size` counts), and a backend may keep a *kernel* layout of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

Json = Mapping[str, Any]


class Store(ABC):
    """A tensor of `shape` in compressed form."""

    kind: ClassVar[str]
    shape: tuple[int, ...]

    # --- what it stands for --------------------------------------------------------------------------------------
    @abstractmethod
    def dense(self) -> Tensor:
        """The tensor it stands for, float32, differentiable in its floating arrays."""

    def apply(self, x: Tensor) -> Tensor:
        """x @ W^T for W = dense(): x is (..., in), the result (..., out)."""
        return torch.nn.functional.linear(x, self.dense().to(x.dtype))

    def rows(self, index: Tensor) -> Tensor:
        """dense()[index] for an integer index of any shape."""
        return torch.nn.functional.embedding(index, self.dense())

    # --- what it is made of --------------------------------------------------------------------------------------
    def parts(self) -> Mapping[str, Store]:
        """The stores this one is composed of, by name; empty for a leaf."""
        return {}

    def open_parts(self) -> frozenset[str]:
        """The parts that a following method may compress further (`then`)."""
        return frozenset()

    @abstractmethod
    def rebuilt(self, parts: Mapping[str, Store]) -> Self:
        """The same store with other parts (all of them given, shapes unchanged)."""

    def bound(self, arrays: Mapping[str, Tensor]) -> Store:
        """The same store over other resident arrays, named as in `arrays()`: how a module's parameters get into a
        store."""
        return self.rebuilt(
            {
                name: part.bound({key[len(name) + 1 :]: a for key, a in arrays.items() if key.split(".")[0] == name})
                for name, part in self.parts().items()
            }
        )

    def snapped(self) -> Store:
        """The same store with its floating arrays rounded to what the disk form holds (they may have been trained)."""
        return self.rebuilt({name: part.snapped() for name, part in self.parts().items()})

    # --- how it is kept ------------------------------------------------------------------------------------------
    @abstractmethod
    def meta(self) -> dict[str, Any]:
        """JSON that, with the arrays, determines the store; without `kind`, `shape` and the parts."""

    def arrays(self) -> dict[str, Tensor]:
        """Resident arrays by dotted name (a leaf's single array has the name "")."""
        return {join(name, key): a for name, part in self.parts().items() for key, a in part.arrays().items()}

    def state(self) -> dict[str, Tensor]:
        """Arrays as they lie on disk, by dotted name, bit-packed."""
        return {join(name, key): a for name, part in self.parts().items() for key, a in part.state().items()}

    @classmethod
    @abstractmethod
    def build(cls, shape: tuple[int, ...], meta: Json, parts: Mapping[str, Store], array: Tensor | None) -> Self:
        """The inverse of `meta()` and `parts()`, or, for a leaf, of `meta()` and its one disk array."""

    def spec(self) -> dict[str, Any]:
        """JSON description of the whole tree (see `stores.from_state`)."""
        spec: dict[str, Any] = {"kind": self.kind, "shape": list(self.shape), **self.meta()}
        if self.parts():
            spec["parts"] = {name: part.spec() for name, part in self.parts().items()}
        return spec

    def nbytes(self) -> int:
        """Exact bytes of the disk form."""
        return sum(part.nbytes() for part in self.parts().values())

    def bits(self) -> int:
        """Exact bits of the disk form."""
        return 8 * self.nbytes()

    # --- composition ---------------------------------------------------------------------------------------------
    def open_leaves(self) -> list[Store]:
        """The floating leaves a following method may compress further."""
        return [leaf for name, part in self.parts().items() if name in self.open_parts() for leaf in part.open_leaves()]

    def map_open(self, change: Callable[[Store], Store]) -> Store:
        """The store with every open leaf replaced by `change(leaf)`."""
        parts = {
            name: part.map_open(change) if name in self.open_parts() else part for name, part in self.parts().items()
        }
        return self.rebuilt(parts)


def join(*names: str) -> str:
    """Dotted name from its non-empty pieces."""
    return ".".join(name for name in names if name)
