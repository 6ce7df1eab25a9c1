"""The stored forms, and the way back from disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tersor.compiler.errors import ArtifactError
from tersor.compiler.stores.affine import Affine
from tersor.compiler.stores.banked import Banked
from tersor.compiler.stores.base import Json, Store, join
from tersor.compiler.stores.chain import Chain
from tersor.compiler.stores.codebook import Codebook
from tersor.compiler.stores.codes import Codes
from tersor.compiler.stores.dense import Dense
from tersor.compiler.stores.product import Product
from tersor.compiler.stores.sparse import Bitmask, Delta, Positions

STORES: dict[str, type[Store]] = {
    store.kind: store for store in (Dense, Codes, Affine, Codebook, Bitmask, Positions, Delta, Banked, Chain, Product)
}

MAX_DEPTH = 16
"""No composition is nested deeper; a spec that is was not written by us."""

__all__ = [
    "STORES",
    "Affine",
    "Banked",
    "Bitmask",
    "Chain",
    "Codebook",
    "Codes",
    "Delta",
    "Dense",
    "Positions",
    "Product",
    "Store",
    "from_state",
]


def from_state(spec: Json, array: Callable[[str], Tensor | None], name: str) -> Store:
    """The store that `spec()` and `state()` describe; `array(dotted name)` finds a disk array.

    Raises `ArtifactError` when the two do not fit: nothing in a file is trusted.
    """
    return _build(spec, array, name, 0)


def _build(spec: Json, array: Callable[[str], Tensor | None], name: str, depth: int) -> Store:
    try:
        cls = STORES[spec["kind"]]
        shape = tuple(int(n) for n in spec["shape"])
        if depth > MAX_DEPTH or any(n < 0 for n in shape):
            raise ValueError("not a description of a store")
        described: dict[str, Any] = dict(spec.get("parts", {}))
        parts = {key: _build(part, array, join(name, key), depth + 1) for key, part in described.items()}
        return cls.build(shape, spec, parts, None if parts else array(name))
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError, OverflowError) as problem:
        raise ArtifactError(f"the stored tensor `{name}` is damaged: {problem}") from None
