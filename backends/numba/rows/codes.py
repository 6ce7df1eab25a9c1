"""Rows of codes into one table of levels: w = levels[code].

arrays   codes [row][columns] bytes, or [row][ceil(columns / 2)], the even column in the low half of a byte; levels
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tersor.backends.numba.emitter import F32, I8, I64, Emitter, Value
from tersor.backends.numba.features import Level
from tersor.backends.numba.rows.form import RowForm, Sample, Sink, Table


class CodeRows(RowForm):
    """Levels are as many as there are codes, so that any byte may be read as one."""

    operands = 2

    def __init__(self, width: Literal[4, 8]) -> None:
        self.width = width

    def place(self, e: Emitter, number: Value, operands: list[Value], columns: Value) -> tuple[Value, Value]:
        size = columns if self.width == 8 else e.b.sdiv(e.at(columns, 1), I64(2))
        return e.at(operands[0], e.b.mul(number, size)), size

    def emit(self, e: Emitter, sink: Sink, number: Value, operands: list[Value], columns: Value) -> None:
        b = e.b
        levels = operands[1]
        source, _ = self.place(e, number, operands, columns)

        def body(i: Value, _: list[Value]) -> list[Value]:
            code = b.zext(e.load(e.at(source, i if self.width == 8 else b.lshr(i, I64(1))), I8), I64)
            if self.width == 4:
                code = b.and_(b.lshr(code, b.shl(b.and_(i, I64(1)), I64(2))), I64(15))
            sink.put(e.times(i, 4), e.load(e.at(levels, e.times(code, 4)), F32))
            return []

        e.loop(columns, [], body)

    def dense(self, table: Table) -> Tensor:
        codes, levels = table.arrays
        codes = codes.view(table.rows, -1)
        if self.width == 4:
            codes = torch.stack([codes & 15, codes >> 4], dim=2).view(table.rows, -1)[:, : table.columns]
        return levels[codes.to(torch.int64)]

    def sample(self, level: Level, generator: torch.Generator) -> Sample:
        rows, columns = 5, 2 * level.lanes + 3
        levels = torch.randn(1 << self.width, generator=generator)
        stored = columns if self.width == 8 else -(-columns // 2)
        codes = torch.randint(0, 256, (rows, stored), dtype=torch.uint8, generator=generator)
        return Sample(Table(rows, columns, (codes, levels)), torch.tensor([4, 0, 2, 2, 1]))


def pack_nibbles(codes: Tensor) -> Tensor:
    """Codes (rows, n) below 16 as (rows, ceil(n / 2)) bytes, the even column in the low half."""
    even = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2)).view(codes.shape[0], -1, 2)
    return even[..., 0] | (even[..., 1] << 4)
