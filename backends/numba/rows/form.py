"""The contract between the kernels that read rows of a table and one form of such a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from llvmlite import ir
from torch import Tensor

from tersor.backends.numba.emitter import Emitter, Value
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


class Sink:
    """Where a row goes: to floats at `y`, in place of what is there or, if it `adds`, on top of it, then times
    `weight` (a float) if there is one.
    """

    def __init__(self, e: Emitter, y: Value, adds: bool = False, weight: Value | None = None) -> None:
        self.e, self.y, self.adds, self.weight = e, y, adds, weight

    def put(self, offset: Value | int, value: Value) -> None:
        """A float or a vector of floats, `offset` bytes into the row. The product and the sum are rounded apart, as
        those of a framework that scales rows before it adds them.
        """
        e = self.e
        at = e.at(self.y, offset)
        if self.weight is not None:
            weight = self.weight
            if isinstance(value.type, ir.VectorType):
                weight = e.splat_to(weight, value.type.count)
            value = e.b.fmul(value, weight)
        if self.adds:
            value = e.b.fadd(e.load(at, value.type), value)
        e.store(at, value)


class RowForm(ABC):
    """How one row of a table becomes floats."""

    @abstractmethod
    def emit(self, e: Emitter, sink: Sink, number: Value, operands: list[Value], columns: Value) -> None:
        """Put row `number` into the sink: `columns` values (at least 1), filled up to a multiple of `unit` with
        anything. `operands` are the addresses of the arrays of the table, then its numbers.
        """

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
