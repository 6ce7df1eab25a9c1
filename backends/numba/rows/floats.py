"""Rows of floats: w = stored * factor, in whole vectors.

arrays   stored [row][padded columns], float32 or 16 bits
numbers  the bits of the factor
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tersor.backends.numba.densekernels import Storage, load_weights
from tersor.backends.numba.emitter import F32, I32, I64, Emitter, Value
from tersor.backends.numba.features import Level
from tersor.backends.numba.rows.form import Block, BlockForm, Sample, Table, in_blocks

_VECTORS = 4  # of a block


class FloatRows(BlockForm):
    operands = 2

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.size = 4 if storage == "float32" else 2

    def unit(self, level: Level) -> int:
        return level.lanes

    def place(self, e: Emitter, number: Value, operands: list[Value], columns: Value) -> tuple[Value, Value]:
        size = e.times(self.vectors(e, columns), e.level.lanes * self.size)
        return e.at(operands[0], e.b.mul(number, size)), size

    def vectors(self, e: Emitter, columns: Value) -> Value:
        """Of a row."""
        return e.b.sdiv(e.at(columns, e.level.lanes - 1), I64(e.level.lanes))

    def blocks(self, e: Emitter, operands: list[Value], columns: Value, each: Callable[[Block], None]) -> None:
        lanes = e.level.lanes
        scale = e.splat(e.b.bitcast(e.b.trunc(operands[1], I32), F32))

        def over(first: Value, count: int) -> None:
            def read(number: Value) -> list[Value]:
                source, _ = self.place(e, number, operands, columns)
                source = e.at(source, e.times(first, lanes * self.size))
                stored = (load_weights(e, e.at(source, lanes * self.size * i), self.storage) for i in range(count))
                return [e.b.fmul(value, scale) for value in stored]

            each(Block(e.times(first, lanes), e.floats, count, read))

        in_blocks(e, self.vectors(e, columns), _VECTORS, over)

    def dense(self, table: Table) -> Tensor:
        (stored,), (bits,) = table.arrays, table.numbers
        factor = float(np.int32(bits).view(np.float32))
        return stored.view(table.rows, -1)[:, : table.columns].float() * factor

    def sample(self, level: Level, generator: torch.Generator) -> Sample:
        rows, columns = 5, 2 * level.lanes + 3
        stored = torch.randn(rows, 3 * level.lanes, generator=generator).to(getattr(torch, self.storage))
        half = int(np.float32(0.5).view(np.int32))
        return Sample(Table(rows, columns, (stored,), (half,)), torch.tensor([4, 0, 2, 2, 1]))
