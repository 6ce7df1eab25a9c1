"""Rows of which few values are kept, in their places, zero elsewhere.

arrays   values float32; their columns, 16 bits unsigned; the first place of every row, int64, one more than rows
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tersor.backends.numba.emitter import F32, I16, I64, Emitter, Value
from tersor.backends.numba.features import Level
from tersor.backends.numba.rows.form import Bag, RowForm, Sample, Table


class SparseRows(RowForm):
    operands = 3

    def place(self, e: Emitter, number: Value, operands: list[Value], columns: Value) -> tuple[Value, Value]:
        return e.at(operands[2], e.times(number, 8)), I64(16)

    def emit(self, e: Emitter, y: Value, number: Value, operands: list[Value], columns: Value) -> None:
        def clear(i: Value, _: list[Value]) -> list[Value]:
            e.store(e.at(y, e.times(i, 4)), F32(0.0))
            return []

        e.loop(columns, [], clear)
        self.kept(e, number, operands, lambda offset, value: e.store(e.at(y, offset), value))

    def emit_sum(self, e: Emitter, y: Value, bag: Bag, operands: list[Value], columns: Value) -> None:
        def row(i: Value, _: list[Value]) -> list[Value]:
            def add(offset: Value, value: Value) -> None:
                at = e.at(y, offset)
                e.store(at, e.b.fadd(e.load(at, F32), *bag.weighted(e, i, [value])))

            self.kept(e, bag.number(e, i), operands, add)
            return []

        e.loop(bag.count, [], row)

    def kept(self, e: Emitter, number: Value, operands: list[Value], each: Callable[[Value, Value], None]) -> None:
        """each(offset, value) for what is kept of a row: offsets are in bytes of a row of floats."""
        b = e.b
        values, places, starts = operands
        start = e.load(e.at(starts, e.times(number, 8)), I64)
        count = b.sub(e.load(e.at(starts, e.times(number, 8), 8), I64), start)

        def one(i: Value, _: list[Value]) -> list[Value]:
            at = b.add(start, i)
            column = b.zext(e.load(e.at(places, e.times(at, 2)), I16), I64)
            each(e.times(column, 4), e.load(e.at(values, e.times(at, 4)), F32))
            return []

        with b.if_then(b.icmp_signed(">", count, I64(0))):
            e.loop(count, [], one)

    def dense(self, table: Table) -> Tensor:
        values, places, starts = table.arrays
        row = torch.repeat_interleave(torch.arange(table.rows), starts.diff())
        y = torch.zeros(table.rows, table.columns)
        return y.index_put((row, places.to(torch.int64) & 0xFFFF), values)

    def sample(self, level: Level, generator: torch.Generator) -> Sample:
        rows, columns = 5, 2 * level.lanes + 3
        keep = torch.rand(rows, columns, generator=generator) < 0.3
        keep[2] = False
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), keep.sum(1).cumsum(0)])
        places = keep.nonzero()[:, 1].to(torch.int16)
        values = torch.randn(places.numel(), generator=generator)
        return Sample(Table(rows, columns, (values, places, starts)), torch.tensor([4, 0, 2, 2, 1]))
