"""Leaf of small integers, `width` bits each (survey section 3.4; `store.bitpack`)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.compiler.stores.base import Json, Store

CHUNK = 2**20
"""Codes that are packed at a time, a multiple of 8."""


def packed_bytes(count: int, width: int) -> int:
    """Bytes of `count` codes of `width` bits in one stream: ceil(count * width / 8)."""
    return (count * width + 7) // 8


def pack_bits(codes: Tensor, width: int) -> Tensor:
    """Codes below 2^width as one little-endian bit stream (uint8): code i has the `width` bits from i * width on."""
    flat = codes.reshape(-1).numpy()
    if width == 8:
        return torch.from_numpy(flat.copy())
    stream = np.empty(-(-flat.size // 8) * width, np.uint8)
    for at in range(0, flat.size, CHUNK):  # words take eight times the memory of their codes
        part = flat[at : at + CHUNK]
        stream[at // 8 * width : -(-(at + part.size) // 8) * width] = _pack(part, width)
    return torch.from_numpy(stream[: packed_bytes(flat.size, width)].copy())


def _pack(codes: np.ndarray, width: int) -> np.ndarray:
    """Eight codes fill exactly `width` bytes of one 64-bit word."""
    words = np.zeros(-(-codes.size // 8) * 8, np.uint64)
    words[: codes.size] = codes
    columns = words.reshape(-1, 8)
    word = columns[:, 0].copy()
    for i in range(1, 8):
        word |= columns[:, i] << np.uint64(width * i)
    return word.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width].reshape(-1)


def unpack_bits(stream: Tensor, width: int, count: int) -> Tensor:
    """The inverse of `pack_bits`: `count` codes as uint8."""
    if width == 8:
        return stream.clone()
    groups = -(-count // 8)
    padded = np.zeros(groups * width, np.uint8)
    padded[: stream.numel()] = stream.numpy()
    codes = np.empty((groups, 8), np.uint8)
    for at in range(0, groups, CHUNK // 8):
        part = slice(at, at + CHUNK // 8)
        codes[part] = _unpack(padded.reshape(groups, width)[part], width)
    return torch.from_numpy(codes.reshape(-1)[:count].copy())


def _unpack(groups: np.ndarray, width: int) -> np.ndarray:
    eight = np.zeros((len(groups), 8), np.uint8)
    eight[:, :width] = groups
    word = eight.reshape(-1).view("<u8")
    mask = np.uint64(2**width - 1)
    return np.stack([(word >> np.uint64(width * i)) & mask for i in range(8)], 1).astype(np.uint8)


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
