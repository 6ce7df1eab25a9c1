"""Uniform levels with a scale and a zero point per group: w = s (c - z) (survey section 3.3.1, equations 37-39)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from tersor.compiler.stores.base import Json, Store
from tersor.compiler.stores.codes import Codes
from tersor.compiler.stores.dense import Dense

BLOCK = 2**21
"""Weights that are decoded at a time."""
INPUT_GROUP: Final = 64
"""Columns of an input that share a scale where nothing else is said."""


def group_count(width: int, group: int) -> int:
    """Groups of `group` columns in a row of `width`; the last one may be shorter."""
    return -(-width // group)


def spread(per_group: Tensor, width: int, group: int) -> Tensor:
    """(rows, groups) -> (rows, width): the value of each column's group."""
    rows, groups = per_group.shape
    if groups == 1:
        return per_group
    return per_group.unsqueeze(-1).expand(rows, groups, group).reshape(rows, groups * group)[:, :width]


class Affine(Store):
    """w[i, j] = scale[i, g] * (codes[i, j] - zero[i, g]) with g = j // group.

    `codes` (rows, columns) of `bits` each; `scale` (rows, groups) in 16 bits; `zero` (rows, groups) of `bits` each,
    or absent when the levels are symmetric around 2^(bits-1). `group` is the number of columns that share a scale.
    `input_group` columns of an input share one where an integer kernel rounds it to 8 bits, 0: those of a row do; what
    the store stands for does not depend on it.
    """

    kind = "affine"

    def __init__(
        self, codes: Codes, scale: Dense, zero: Codes | None, group: int, input_group: int = INPUT_GROUP
    ) -> None:
        self.shape = codes.shape
        self.codes, self.scale, self.zero = codes, scale, zero
        self.group, self.input_group = group, input_group

    def reading(self, input_group: int) -> Affine:
        """The same weights with another `input_group`."""
        return Affine(self.codes, self.scale, self.zero, self.group, input_group)

    @property
    def bits_per_code(self) -> int:
        return self.codes.width

    def _levels(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """s (c - z) for some rows: codes (rows, columns), scale and zero (rows, groups)."""
        columns = self.shape[1]
        offset = float(2 ** (self.codes.width - 1)) if zero is None else zero.to(torch.float32)
        if columns % self.group:
            z = offset if isinstance(offset, float) else spread(offset, columns, self.group)
            return (codes.to(torch.float32) - z) * spread(scale, columns, self.group)
        z = offset if isinstance(offset, float) else offset.unsqueeze(-1)
        grouped = codes.reshape(-1, columns // self.group, self.group).to(torch.float32).sub_(z)
        return (grouped * scale.unsqueeze(-1)).reshape(-1, columns)

    def dense(self) -> Tensor:
        scale, zero = self.scale.dense(), self.zero.values if self.zero else None
        rows = max(1, BLOCK // self.shape[1])
        if scale.requires_grad or self.shape[0] <= rows:
            return self._levels(self.codes.values, scale, zero)
        # A large table block by block: its intermediate values would take as much memory again.
        dense = torch.empty(self.shape)
        for at in range(0, self.shape[0], rows):
            part = slice(at, at + rows)
            dense[part] = self._levels(self.codes.values[part], scale[part], None if zero is None else zero[part])
        return dense

    def rows(self, index: Tensor) -> Tensor:
        flat = index.reshape(-1)
        scale = torch.nn.functional.embedding(flat, self.scale.dense())
        zero = self.zero.values[flat] if self.zero else None
        return self._levels(self.codes.values[flat], scale, zero).reshape(*index.shape, self.shape[1])

    def parts(self) -> Mapping[str, Store]:
        parts: dict[str, Store] = {"codes": self.codes, "scale": self.scale}
        return parts if self.zero is None else parts | {"zero": self.zero}

    def rebuilt(self, parts: Mapping[str, Store]) -> Affine:
        codes, scale, zero = parts["codes"], parts["scale"], parts.get("zero")
        if not isinstance(codes, Codes) or not isinstance(scale, Dense) or not isinstance(zero, Codes | None):
            raise ValueError("an affine store is made of codes, a scale and a zero point")
        return Affine(codes, scale, zero, self.group, self.input_group)

    def meta(self) -> dict[str, Any]:
        return {"group": self.group, "input": self.input_group}

    @classmethod
    def build(cls, shape: tuple[int, ...], meta: Json, parts: Mapping[str, Store], array: Tensor | None) -> Affine:
        codes, scale, zero = parts["codes"], parts["scale"], parts.get("zero")
        group, input_group = int(meta["group"]), int(meta["input"])
        if not isinstance(codes, Codes) or not isinstance(scale, Dense) or not isinstance(zero, Codes | None):
            raise ValueError("an affine store is made of codes, a scale and a zero point")
        if group < 1 or input_group < 0 or len(shape) != 2:
            raise ValueError("an affine store is a matrix in groups of columns")
        grid = (shape[0], group_count(shape[1], group))
        if codes.shape != shape or scale.shape != grid or (zero is not None and zero.shape != grid):
            raise ValueError(f"affine store of shape {shape} in groups of {group} does not fit its parts")
        return cls(codes, scale, zero, group, input_group)
