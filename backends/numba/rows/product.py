"""Rows of codes of sub-vectors: w = [books[0][code 0], books[1][code 1], ...].

arrays   codes [row][sub-vectors] bytes, or [row][ceil(sub-vectors / 2)], the even one in the low half of a byte; books
         [sub-vector][2^width][block] float32, or one for all
numbers  bytes between books: 0 where there is one
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from llvmlite import ir
from torch import Tensor

from tersor.backends.numba.emitter import F32, I64, Emitter, Value
from tersor.backends.numba.features import Level
from tersor.backends.numba.rows.codes import load_code, pack_nibbles
from tersor.backends.numba.rows.form import Block, BlockForm, Sample, Table, in_blocks

_PARTS = 8  # sub-vectors of a block


def product_form(width: int, block: int) -> str:
    """The name of the form."""
    return f"product{width}x{block}"


def product_table(codes: Tensor, books: Tensor, columns: int) -> tuple[str, Table]:
    """The form and table of codes (rows, s) uint8 into books (levels, s or 1, block)."""
    levels, count, block = books.shape
    width = 4 if levels <= 16 else 8
    packed = pack_nibbles(codes) if width == 4 else codes.clone()
    # Any byte may be read as a code.
    full = torch.nn.functional.pad(books.transpose(0, 1), (0, 0, 0, 2**width - levels)).contiguous()
    stride = 4 * block << width if count > 1 else 0
    return product_form(width, block), Table(len(codes), columns, (packed, full), (stride,))


class ProductRows(BlockForm):
    """Columns come in whole sub-vectors."""

    operands = 3

    def __init__(self, width: int, block: int) -> None:
        self.width, self.block = width, block

    def unit(self, level: Level) -> int:
        return self.block

    def place(self, e: Emitter, number: Value, operands: list[Value], columns: Value) -> tuple[Value, Value]:
        parts = self.parts(e, columns)
        size = parts if self.width == 8 else e.b.sdiv(e.at(parts, 1), I64(2))
        return e.at(operands[0], e.b.mul(number, size)), size

    def parts(self, e: Emitter, columns: Value) -> Value:
        """Sub-vectors of a row."""
        return e.b.sdiv(e.at(columns, self.block - 1), I64(self.block))

    def blocks(self, e: Emitter, operands: list[Value], columns: Value, each: Callable[[Block], None]) -> None:
        b = e.b
        _, books, stride = operands
        kind = ir.VectorType(F32, self.block)

        def over(first: Value, count: int) -> None:
            def read(number: Value) -> list[Value]:
                source, _ = self.place(e, number, operands, columns)
                parts = [e.at(first, i) for i in range(count)]
                codes = [load_code(e, source, part, self.width) for part in parts]
                places = zip(parts, codes, strict=True)
                return [
                    e.load(e.at(books, b.mul(part, stride), e.times(code, 4 * self.block)), kind)
                    for part, code in places
                ]

            each(Block(e.times(first, self.block), kind, count, read))

        in_blocks(e, self.parts(e, columns), _PARTS, over)

    def dense(self, table: Table) -> Tensor:
        codes, books = table.arrays
        count = -(-table.columns // self.block)
        codes = codes.view(table.rows, -1)
        if self.width == 4:
            codes = torch.stack([codes & 15, codes >> 4], dim=2).view(table.rows, -1)[:, :count]
        part = torch.arange(count) if table.numbers[0] else torch.zeros(count, dtype=torch.int64)
        return books[part, codes.to(torch.int64)].flatten(1)[:, : table.columns]

    def sample(self, level: Level, generator: torch.Generator) -> Sample:
        rows, count = 5, 7
        books = torch.randn(count, 1 << self.width, self.block, generator=generator)
        stored = count if self.width == 8 else -(-count // 2)
        codes = torch.randint(0, 256, (rows, stored), dtype=torch.uint8, generator=generator)
        table = Table(rows, count * self.block - 1, (codes, books), (4 * self.block << self.width,))
        return Sample(table, torch.tensor([4, 0, 2, 2, 1]))
