"""Rows of codes into one table of levels: w = levels[code].

arrays   codes [row][columns] bytes, or [row][ceil(columns / 2)], the even column in the low half of a byte; levels
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from tersor.backends.numba.emitter import F32, I8, I64, Emitter, Value
from tersor.backends.numba.features import Level
from tersor.backends.numba.rows.form import Block, BlockForm, Sample, Table, in_blocks

_SCALARS = 8  # values of a block that are looked up one by one


class CodeRows(BlockForm):
    """Levels are as many as there are codes, so that any byte may be read as one."""

    operands = 2

    def __init__(self, width: Literal[4, 8]) -> None:
        self.width = width

    def place(self, e: Emitter, number: Value, operands: list[Value], columns: Value) -> tuple[Value, Value]:
        size = columns if self.width == 8 else e.b.sdiv(e.at(columns, 1), I64(2))
        return e.at(operands[0], e.b.mul(number, size)), size

    def blocks(self, e: Emitter, operands: list[Value], columns: Value, each: Callable[[Block], None]) -> None:
        levels = operands[1]

        def one_by_one(first: Value, count: int) -> None:
            def read(number: Value) -> list[Value]:
                source, _ = self.place(e, number, operands, columns)
                codes = [load_code(e, source, e.at(first, i), self.width) for i in range(count)]
                return [e.load(e.at(levels, e.times(code, 4)), F32) for code in codes]

            each(Block(first, F32, count, read))

        in_blocks(e, columns, _SCALARS, one_by_one)

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


def load_code(e: Emitter, source: Value, i: Value, width: int) -> Value:
    """Code i of those at `source`, bytes or pairs in a byte (width 4)."""
    b = e.b
    if width == 8:
        return b.zext(e.load(e.at(source, i), I8), I64)
    pair = b.zext(e.load(e.at(source, b.lshr(i, I64(1))), I8), I64)
    return b.and_(b.lshr(pair, b.shl(b.and_(i, I64(1)), I64(2))), I64(15))
