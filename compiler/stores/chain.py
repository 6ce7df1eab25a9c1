"""A product of two factors: W = L R (survey section 6, equation 64)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tersor.compiler.stores.base import Json, Store


class Chain(Store):
    """W = left right with left (m, r) and right (r, n): bits = bits(left) + bits(right). Both factors stay open."""

    kind = "chain"

    def __init__(self, left: Store, right: Store) -> None:
        self.shape = (left.shape[0], right.shape[1])
        self.left, self.right = left, right

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def dense(self) -> Tensor:
        return self.left.dense() @ self.right.dense()

    def apply(self, x: Tensor) -> Tensor:
        return self.left.apply(self.right.apply(x))

    def rows(self, index: Tensor) -> Tensor:
        return self.left.rows(index) @ self.right.dense()

    def parts(self) -> Mapping[str, Store]:
        return {"left": self.left, "right": self.right}

    def open_parts(self) -> frozenset[str]:
        return frozenset({"left", "right"})

    def rebuilt(self, parts: Mapping[str, Store]) -> Chain:
        return Chain(parts["left"], parts["right"])

    def meta(self) -> dict[str, Any]:
        return {}

    @classmethod
    def build(cls, shape: tuple[int, ...], meta: Json, parts: Mapping[str, Store], array: Tensor | None) -> Chain:
        left, right = parts["left"], parts["right"]
        if left.shape[1] != right.shape[0] or (left.shape[0], right.shape[1]) != shape:
            raise ValueError(f"factors {left.shape} and {right.shape} do not make a {shape} matrix")
        return cls(left, right)
