"""Codes of sub-vectors: w_i = [T^1[c_i1], T^2[c_i2], ...] (survey section 3.3.3, equation 50)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.compiler.stores.base import Json, Store
from tersor.compiler.stores.codes import Codes
from tersor.compiler.stores.dense import Dense


class Product(Store):
    """w[i, j] = table[codes[i, j // block], j], or table[..., j % block] where one book serves all sub-vectors.

    `codes` (rows, s) with s = ceil(columns / block) sub-vectors a row; `table` (levels, columns), side by side the
    books of the sub-vectors, or (levels, block). bits = width * rows * s + 16 * levels * columns (or block).
    """

    kind = "product"

    def __init__(self, codes: Codes, table: Dense, columns: int, block: int) -> None:
        self.shape = (codes.shape[0], columns)
        self.codes, self.table, self.block = codes, table, block

    def books(self) -> Tensor:
        """(levels, books, block), the last book filled up with zeros."""
        table = self.table.dense()
        return F.pad(table, (0, -table.shape[1] % self.block)).view(table.shape[0], -1, self.block)

    def _look_up(self, codes: Tensor) -> Tensor:
        """(..., s) codes to (..., columns) values."""
        books = self.books()
        places = codes.to(torch.int64)
        if books.shape[1] > 1:
            places = places * books.shape[1] + torch.arange(books.shape[1], device=codes.device)
        found = F.embedding(places, books.reshape(-1, self.block))
        return found.flatten(-2)[..., : self.shape[1]]

    def dense(self) -> Tensor:
        return self._look_up(self.codes.values)

    def rows(self, index: Tensor) -> Tensor:
        return self._look_up(self.codes.values[index])

    def parts(self) -> Mapping[str, Store]:
        return {"codes": self.codes, "table": self.table}

    def rebuilt(self, parts: Mapping[str, Store]) -> Product:
        codes, table = parts["codes"], parts["table"]
        if not isinstance(codes, Codes) or not isinstance(table, Dense):
            raise ValueError("a product store is made of codes and a table")
        return Product(codes, table, self.shape[1], self.block)

    def meta(self) -> dict[str, Any]:
        return {"block": self.block}

    @classmethod
    def build(cls, shape: tuple[int, ...], meta: Json, parts: Mapping[str, Store], array: Tensor | None) -> Product:
        codes, table, block = parts["codes"], parts["table"], int(meta["block"])
        if not isinstance(codes, Codes) or not isinstance(table, Dense) or len(shape) != 2 or block < 1:
            raise ValueError("a product store is a matrix made of codes and a table")
        wide = len(table.shape) == 2 and table.shape[1] in (shape[1], block)
        if codes.shape != (shape[0], -(-shape[1] // block)) or not wide:
            raise ValueError(f"product store of shape {shape} in blocks of {block} does not fit its parts")
        if codes.values.numel() and int(codes.values.max()) >= table.shape[0]:
            raise ValueError("a code points beyond the table")
        return cls(codes, table, shape[1], block)
