"""Leaf of small integers, `width` bits each (survey section 3.4; `store.bitpack`)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.compiler.stores.base import Json, Store

CHUNK = 2**15
"""Words of eight codes that are packed at a time: they stay in the cache."""
LANES = tuple(np.uint64(lanes) for lanes in (0x00FF00FF00FF00FF, 0x0000FFFF0000FFFF, 0x00000000FFFFFFFF))
"""The lower half of every lane of 16, 32 and 64 bits."""


def packed_bytes(count: int, width: int) -> int:
    """Bytes of `count` codes of `width` bits in one stream: ceil(count * width / 8)."""
    return (count * width + 7) // 8


def pack_bits(codes: Tensor, width: int) -> Tensor:
    """Codes below 2^width as one little-endian bit stream (uint8): code i has the `width` bits from i * width on."""
    flat = codes.reshape(-1).numpy()
    groups = -(-flat.size // 8)  # eight codes fill exactly `width` bytes
    stream = np.empty((groups, width), np.uint8)
    for at in range(0, groups, CHUNK):
        eight = flat[at * 8 : (at + CHUNK) * 8]
        if missing := -eight.size % 8:
            eight = np.pad(eight, (0, missing))
        stream[at : at + CHUNK] = _joined(eight, width)
    used, whole = packed_bytes(flat.size, width), torch.from_numpy(stream.reshape(-1))
    return whole if used == stream.size else whole[:used].clone()


def _joined(codes: np.ndarray, width: int) -> np.ndarray:
    """Eight codes of a byte each in one word, brought together in pairs, then pairs of pairs, then both halves."""
    word = codes.view("<u8")
    for step, low in enumerate(LANES):
        word = (word & low) | ((word & ~low) >> np.uint64((8 - width) << step))
    return word.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)[:, :width]


def unpack_bits(stream: Tensor, width: int, count: int) -> Tensor:
    """The inverse of `pack_bits`: `count` codes as uint8."""
    groups = -(-count // 8)
    padded = np.zeros((groups, width), np.uint8)
    padded.reshape(-1)[: stream.numel()] = stream.numpy()
    codes = np.empty((groups, 8), np.uint8)
    for at in range(0, groups, CHUNK):
        codes[at : at + CHUNK] = _parted(padded[at : at + CHUNK], width)
    return torch.from_numpy(codes.reshape(-1)[:count].copy())


def _parted(groups: np.ndarray, width: int) -> np.ndarray:
    """The inverse of `_joined`."""
    eight = np.zeros((len(groups), 8), np.uint8)
    eight[:, :width] = groups
    word = eight.view("<u8")
    for step in reversed(range(len(LANES))):
        half = np.uint64(2 ** (width << step) - 1)
        # In every lane, the bits above the lower half move up to where the upper lane starts.
        stays = np.uint64(sum(int(half) << at for at in range(0, 64, 16 << step)))
        word = (word & stays) | ((word & (stays << np.uint64(width << step))) << np.uint64((8 - width) << step))
    return word.astype("<u8", copy=False).view(np.uint8)


class Codes(Store):
    """Integers in [0, 2^width), one byte each when resident, `width` bits each on disk. `dense()` is their value."""

    kind = "codes"

    def __init__(self, values: Tensor, width: int) -> None:
        self.shape = tuple(values.shape)
        self.values = values
        self.width = width

    def dense(self) -> Tensor:
        return self.values.to(torch.float32)

    def rebuilt(self, parts: Mapping[str, Store]) -> Codes:
        return self

    def bound(self, arrays: Mapping[str, Tensor]) -> Codes:
        return Codes(arrays[""], self.width)

    def snapped(self) -> Codes:
        return self

    def meta(self) -> dict[str, Any]:
        return {"width": self.width}

    def arrays(self) -> dict[str, Tensor]:
        return {"": self.values}

    def state(self) -> dict[str, Tensor]:
        return {"": pack_bits(self.values, self.width)}

    def nbytes(self) -> int:
        return packed_bytes(prod(self.shape), self.width)

    @classmethod
    def build(cls, shape: tuple[int, ...], meta: Json, parts: Mapping[str, Store], array: Tensor | None) -> Codes:
        width, count = int(meta["width"]), prod(shape)
        if not 1 <= width <= 8:
            raise ValueError(f"code width {width} is not between 1 and 8")
        if array is None or array.dtype != torch.uint8 or array.numel() != packed_bytes(count, width):
            raise ValueError(f"expected {packed_bytes(count, width)} bytes of codes")
        return cls(unpack_bits(array, width, count).reshape(shape), width)
