"""Codes into a table of levels: w = T[c] (survey section 3.3.3; equation 49 for its size)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tersor.compiler.stores.base import Json, Store
from tersor.compiler.stores.codes import Codes
from tersor.compiler.stores.dense import Dense


class Codebook(Store):
    """w[i, j] = table[codes[i, j]]: bits = width * mn + 16 * levels. Gradients of the table are grouped sums."""

    kind = "codebook"

    def __init__(self, codes: Codes, table: Dense) -> None:
        self.shape = codes.shape
        self.codes, self.table = codes, table

    def _look_up(self, codes: Tensor) -> Tensor:
        return torch.nn.functional.embedding(codes.to(torch.int64), self.table.dense().unsqueeze(1)).squeeze(-1)

    def dense(self) -> Tensor:
        return self._look_up(self.codes.values)

    def rows(self, index: Tensor) -> Tensor:
        return self._look_up(self.codes.values[index])

    def parts(self) -> Mapping[str, Store]:
        return {"codes": self.codes, "table": self.table}

    def rebuilt(self, parts: Mapping[str, Store]) -> Codebook:
        codes, table = parts["codes"], parts["table"]
        if not isinstance(codes, Codes) or not isinstance(table, Dense):
            raise ValueError("a codebook store is made of codes and a table")
        return Codebook(codes, table)

    def meta(self) -> dict[str, Any]:
        return {}

    @classmethod
    def build(cls, shape: tuple[int, ...], meta: Json, parts: Mapping[str, Store], array: Tensor | None) -> Codebook:
        codes, table = parts["codes"], parts["table"]
        if (
            not isinstance(codes, Codes)
            or not isinstance(table, Dense)
            or codes.shape != shape
            or len(table.shape) != 1
        ):
            raise ValueError("a codebook store is made of codes and a table")
        if codes.values.numel() and int(codes.values.max()) >= table.shape[0]:
            raise ValueError("a code points beyond the table")
        return cls(codes, table)
