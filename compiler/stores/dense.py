"""Leaf of floating values: the identity store, and 16-bit storage (survey section 8.3, `quant.half`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import frexp
from typing import Any, Literal

import torch
from torch import Tensor

from tersor.compiler.stores.base import Json, Store

DType = Literal["float32", "float16", "bfloat16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def half_exponent(values: Tensor) -> int:
    """The e for which max|values| / 2^e lies in [2^14, 2^15): the top of the float16 range, so that small values
    (scales of 8-bit codes are about 1e-5) keep eleven significant bits instead of falling among the subnormals."""
    largest = float(values.detach().abs().max()) if values.numel() else 0.0
    return frexp(largest)[1] - 15 if largest > 0 else 0


class Dense(Store):
    """values = stored 2^exponent: kept in `dtype` on disk, float32 when resident so that they stay trainable.

    `Dense.of` rounds to what the disk form can hold: what is computed with is what is stored.
    """

    kind = "dense"

    def __init__(self, values: Tensor, dtype: DType = "float32", exponent: int = 0) -> None:
        self.shape = tuple(values.shape)
        self.values, self.dtype, self.exponent = values, dtype, exponent

    @classmethod
    def of(cls, values: Tensor, dtype: DType = "float32") -> Dense:
        """The values rounded to nearest in `dtype`."""
        exponent = half_exponent(values) if dtype == "float16" else 0
        return cls(cls._decode(cls._encode(values.to(torch.float32), dtype, exponent), exponent), dtype, exponent)

    @staticmethod
    def _encode(values: Tensor, dtype: DType, exponent: int) -> Tensor:
        return (values * 2.0**-exponent if exponent else values).to(DTYPES[dtype])

    @staticmethod
    def _decode(stored: Tensor, exponent: int) -> Tensor:
        values = stored.to(torch.float32)
        return values * 2.0**exponent if exponent else values

    def dense(self) -> Tensor:
        return self.values

    def rebuilt(self, parts: Mapping[str, Store]) -> Dense:
        return self

    def bound(self, arrays: Mapping[str, Tensor]) -> Dense:
        return Dense(arrays[""], self.dtype, self.exponent)

    def snapped(self) -> Store:
        return Dense.of(self.values.detach(), self.dtype)

    def meta(self) -> dict[str, Any]:
        return {"dtype": self.dtype} | ({"exponent": self.exponent} if self.exponent else {})

    def arrays(self) -> dict[str, Tensor]:
        return {"": self.values}

    def state(self) -> dict[str, Tensor]:
        return {"": self._encode(self.values.detach(), self.dtype, self.exponent).contiguous()}

    def nbytes(self) -> int:
        return self.values.numel() * DTYPES[self.dtype].itemsize

    def open_leaves(self) -> list[Store]:
        return [self]

    def map_open(self, change: Callable[[Store], Store]) -> Store:
        return change(self)

    @classmethod
    def build(cls, shape: tuple[int, ...], meta: Json, parts: Mapping[str, Store], array: Tensor | None) -> Dense:
        dtype: DType = meta["dtype"]
        exponent = int(meta.get("exponent", 0))
        if array is None or array.dtype != DTYPES[dtype] or abs(exponent) > 200:
            raise ValueError(f"expected a {dtype} array")
        return cls(cls._decode(array, exponent).reshape(shape), dtype, exponent)
