"""Kept values and where they stand: bitmask and relative-index storage (survey section 2.1.2; `store.csr_delta`)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.compiler.stores.base import Json, Store
from tersor.compiler.stores.codes import Codes, pack_bits, packed_bytes, unpack_bits


class Bitmask(Store):
    """One bit per slot and the kept values in row order: bits = mn + bits(values). `values` has shape (1, kept)."""

    kind = "bitmask"

    def __init__(self, mask: Codes, values: Store) -> None:
        self.shape = mask.shape
        self.mask, self.values = mask, values

    def dense(self) -> Tensor:
        values = self.values.dense().reshape(-1)
        empty = torch.zeros(self.shape, dtype=values.dtype, device=values.device)
        return empty.masked_scatter(self.mask.values.to(torch.bool), values)

    def parts(self) -> Mapping[str, Store]:
        return {"mask": self.mask, "values": self.values}

    def open_parts(self) -> frozenset[str]:
        return frozenset({"values"})

    def rebuilt(self, parts: Mapping[str, Store]) -> Bitmask:
        mask = parts["mask"]
        if not isinstance(mask, Codes) or mask.width != 1:
            raise ValueError("a bitmask store has a mask of one bit per slot")
        return Bitmask(mask, parts["values"])

    def meta(self) -> dict[str, Any]:
        return {}

    @classmethod
    def build(cls, shape: tuple[int, ...], meta: Json, parts: Mapping[str, Store], array: Tensor | None) -> Bitmask:
        mask, values = parts["mask"], parts["values"]
        if not isinstance(mask, Codes) or mask.width != 1 or mask.shape != shape:
            raise ValueError("a bitmask store has a mask of one bit per slot")
        if values.shape != (1, int(mask.values.sum())):
            raise ValueError(f"{int(mask.values.sum())} slots are kept but {values.shape} values are stored")
        return cls(mask, values)


def encode_gaps(positions: np.ndarray, width: int) -> np.ndarray:
    """Increasing positions as gap codes of `width` bits. A code v < 2^width - 1 moves v + 1 slots on, to a kept one
    (starting before the first); v = 2^width - 1 moves that many slots on and keeps nothing.

    The survey's filler is a stored zero; a filler without a value needs no zero among the levels of the values.
    """
    jump = 2**width - 1
    gaps = np.diff(positions.astype(np.int64), prepend=-1) - 1
    fillers = gaps // jump
    codes = np.full(int((fillers + 1).sum()), jump, np.uint8)
    codes[np.cumsum(fillers + 1) - 1] = gaps % jump
    return codes


def decode_gaps(codes: np.ndarray, width: int) -> np.ndarray:
    """The inverse of `encode_gaps`."""
    jump = 2**width - 1
    kept = codes != jump
    steps = codes.astype(np.int64) + kept
    positions: np.ndarray = (np.cumsum(steps) - 1)[kept]
    return positions


def gap_bits(positions: np.ndarray) -> int:
    """The code width in 2..8 that takes the fewest bits for these positions (ties: the narrower)."""
    gaps = np.diff(positions.astype(np.int64), prepend=-1) - 1
    return min(range(2, 9), key=lambda w: w * int((gaps // (2**w - 1) + 1).sum()))


MOST_SLOTS = 2**31
"""Positions are 32-bit integers when resident; no file makes us allocate more than they can reach."""


class Positions(Store):
    """Leaf of increasing positions: int32 when resident, gap codes of `width` bits on disk."""

    kind = "positions"

    def __init__(self, values: Tensor, width: int) -> None:
        self.shape = tuple(values.shape)
        self.values, self.width = values, width

    def dense(self) -> Tensor:
        return self.values.to(torch.float32)

    def rebuilt(self, parts: Mapping[str, Store]) -> Positions:
        return self

    def bound(self, arrays: Mapping[str, Tensor]) -> Positions:
        return Positions(arrays[""], self.width)

    def snapped(self) -> Positions:
        return self

    def _codes(self) -> np.ndarray:
        return encode_gaps(self.values.numpy(), self.width)

    def meta(self) -> dict[str, Any]:
        return {"width": self.width, "codes": int(self._codes().size)}

    def arrays(self) -> dict[str, Tensor]:
        return {"": self.values}

    def state(self) -> dict[str, Tensor]:
        return {"": pack_bits(torch.from_numpy(self._codes()), self.width)}

    def nbytes(self) -> int:
        return packed_bytes(self._codes().size, self.width)

    @classmethod
    def build(cls, shape: tuple[int, ...], meta: Json, parts: Mapping[str, Store], array: Tensor | None) -> Positions:
        width, count = int(meta["width"]), int(meta["codes"])
        if not 2 <= width <= 8 or array is None or array.numel() != packed_bytes(count, width):
            raise ValueError("the gap codes do not fit their header")
        positions = decode_gaps(unpack_bits(array, width, count).numpy(), width)
        if positions.size != prod(shape):
            raise ValueError(f"{prod(shape)} positions expected, {positions.size} found")
        return cls(torch.from_numpy(positions.astype(np.int32)), width)


class Delta(Store):
    """Relative row-major positions and the kept values: bits = width * (kept + fillers) + bits(values)."""

    kind = "delta"

    def __init__(self, shape: tuple[int, ...], positions: Positions, values: Store) -> None:
        self.shape = shape
        self.positions, self.values = positions, values

    def dense(self) -> Tensor:
        values = self.values.dense().reshape(-1)
        empty = torch.zeros(prod(self.shape), dtype=values.dtype, device=values.device)
        return empty.index_put((self.positions.values.to(torch.int64),), values).reshape(self.shape)

    def parts(self) -> Mapping[str, Store]:
        return {"positions": self.positions, "values": self.values}

    def open_parts(self) -> frozenset[str]:
        return frozenset({"values"})

    def rebuilt(self, parts: Mapping[str, Store]) -> Delta:
        positions = parts["positions"]
        if not isinstance(positions, Positions):
            raise ValueError("a delta store has positions")
        return Delta(self.shape, positions, parts["values"])

    def meta(self) -> dict[str, Any]:
        return {}

    @classmethod
    def build(cls, shape: tuple[int, ...], meta: Json, parts: Mapping[str, Store], array: Tensor | None) -> Delta:
        positions, values = parts["positions"], parts["values"]
        if not isinstance(positions, Positions) or values.shape != (1, positions.shape[0]):
            raise ValueError("a delta store needs as many values as positions")
        if positions.shape[0] and int(positions.values.max()) >= prod(shape):
            raise ValueError("a stored position lies outside the tensor")
        if prod(shape) > MOST_SLOTS:
            raise ValueError(f"{prod(shape)} slots are more than 32-bit positions reach")
        return cls(shape, positions, values)
