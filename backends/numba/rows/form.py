"""The contract between the kernels that read rows of a table and one form of such a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from llvmlite import ir
from torch import Tensor

from tersor.backends.numba.emitter import F32, I64, Emitter, Value
from tersor.backends.numba.features import Level


@dataclass(frozen=True)
class Table:
    """A table (rows, columns): `arrays`, then `numbers`, are what its form says they are."""

    rows: int
    columns: int
    arrays: tuple[Tensor, ...]
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A small table with every kind of edge, which a kernel has to read right before it is trusted."""

    table: Table
    index: Tensor


@dataclass(frozen=True)
class Bag:
    """`count` rows (at least 1) that are summed: their numbers at `index` (int64) and, if they are not all one, their
    `weights` (float), both addresses.
    """

    index: Value
    count: Value
    weights: Value | None = None

    def number(self, e: Emitter, i: Value) -> Value:
        return e.load(e.at(self.index, e.times(i, 8)), I64)

    def weighted(self, e: Emitter, i: Value, values: list[Value]) -> list[Value]:
        """Values of row i, each a float or a vector, times its weight: rounded before they are added, as those of a
        framework that scales rows before it sums them.
        """
        if self.weights is None:
            return values
        weight = e.load(e.at(self.weights, e.times(i, 4)), F32)

        def like(value: Value) -> Value:
            return e.splat_to(weight, value.type.count) if isinstance(value.type, ir.VectorType) else weight

        return [e.b.fmul(value, like(value)) for value in values]


@dataclass(frozen=True)
class Block:
    """Neighbours in every row, from column `start` on: `read(number)` gives those of a row as `count` values of a
    `kind`, floats or vectors of them.
    """

    start: Value
    kind: ir.Type
    count: int
    read: Callable[[Value], list[Value]]

    def places(self, e: Emitter, y: Value) -> list[Value]:
        """Where its values are in a row of floats at y."""
        size = 4 * (self.kind.count if isinstance(self.kind, ir.VectorType) else 1)
        return [e.at(y, e.times(self.start, 4), size * i) for i in range(self.count)]


class RowForm(ABC):
    """How one row of a table becomes floats."""

    @abstractmethod
    def emit(self, e: Emitter, y: Value, number: Value, operands: list[Value], columns: Value) -> None:
        """Write row `number` to y: `columns` floats (at least 1), filled up to a multiple of `unit` with anything.
        `operands` are the addresses of the arrays of the table, then its numbers.
        """

    @abstractmethod
    def emit_sum(self, e: Emitter, y: Value, bag: Bag, operands: list[Value], columns: Value) -> None:
        """Add the rows of a bag to y, one after the other; see `emit`."""

    @abstractmethod
    def place(self, e: Emitter, number: Value, operands: list[Value], columns: Value) -> tuple[Value, Value]:
        """(address, bytes) of what is read first of row `number`."""

    @property
    @abstractmethod
    def operands(self) -> int:
        """How many there are."""

    def unit(self, level: Level) -> int:
        """Columns are written in multiples of so many."""
        return 1

    @abstractmethod
    def dense(self, table: Table) -> Tensor:
        """The whole table by torch, float32."""

    @abstractmethod
    def sample(self, level: Level, generator: torch.Generator) -> Sample:
        """A table to check the kernel on."""


class BlockForm(RowForm):
    """A form whose rows are read a block of columns at a time: the sums of a block stay in registers."""

    @abstractmethod
    def blocks(self, e: Emitter, operands: list[Value], columns: Value, each: Callable[[Block], None]) -> None:
        """Emit the loops over the blocks of all columns around `each`."""

    def emit(self, e: Emitter, y: Value, number: Value, operands: list[Value], columns: Value) -> None:
        def write(block: Block) -> None:
            for place, value in zip(block.places(e, y), block.read(number), strict=True):
                e.store(place, value)

        self.blocks(e, operands, columns, write)

    def emit_sum(self, e: Emitter, y: Value, bag: Bag, operands: list[Value], columns: Value) -> None:
        def total(block: Block) -> None:
            def add(i: Value, sums: list[Value]) -> list[Value]:
                values = bag.weighted(e, i, block.read(bag.number(e, i)))
                return [e.b.fadd(s, value) for s, value in zip(sums, values, strict=True)]

            places = block.places(e, y)
            sums = e.loop(bag.count, [e.load(place, block.kind) for place in places], add)
            for place, value in zip(places, sums, strict=True):
                e.store(place, value)

        self.blocks(e, operands, columns, total)


def in_blocks(e: Emitter, total: Value, size: int, each: Callable[[Value, int], None]) -> None:
    """each(first, count) over 0..total, `size` at a time, what is left one by one."""
    b = e.b
    whole = b.sdiv(total, I64(size))
    done = e.times(whole, size)

    def over(pieces: Value, start: Value, count: int) -> None:
        def piece(i: Value, _: list[Value]) -> list[Value]:
            each(b.add(start, e.times(i, count)), count)
            return []

        with b.if_then(b.icmp_signed(">", pieces, I64(0))):
            e.loop(pieces, [], piece)

    over(whole, I64(0), size)
    over(b.sub(total, done), done, 1)
