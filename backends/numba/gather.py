"""The gather of table rows as a step, as the torch operator `tersor::gather_rows`, and as an embedding."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tersor.backends.numba.build import kernel_address
from tersor.backends.numba.features import Level, below, detect, level_named
from tersor.backends.numba.gatherkernels import GatherSpec
from tersor.backends.numba.native.values import Operand
from tersor.backends.numba.ops import direct
from tersor.backends.numba.rows import ROWS, Table
from tersor.backends.numba.steps import Step, run_now
from tersor.compiler.errors import RequestError

_library = torch.library.Library("tersor", "FRAGMENT")
_library.define(
    "gather_rows(Tensor index, Tensor[] arrays, int[] numbers, int rows, int columns, str form, str level) -> Tensor"
)


def refuse_index(place: int, rows: int) -> None:
    """RequestError: an index out of range."""
    raise RequestError(f"index {place} is out of range: the embedding has rows 0 to {rows - 1}")


def table_operands(table: Table, keep: Callable[[Tensor], int] = Tensor.data_ptr) -> tuple[int, ...]:
    """What the kernels take for a table; `keep` gives the address of an array."""
    return (*map(keep, table.arrays), *table.numbers)


def gather_step(
    spec: GatherSpec, table: Table, count: int, index: Operand, operands: Sequence[int], y: Operand, wrong: Operand
) -> Step:
    """y (count, columns) = rows `index` (int64) of a table, whose `table_operands` these are."""
    columns = table.columns
    places = (index, table.rows, columns, y, wrong, *operands)
    return Step("gather", kernel_address(spec, "glue_gather"), places, count, 0.3 * columns, spec.work(columns))


def gather_rows(
    index: Tensor, arrays: Sequence[Tensor], numbers: Sequence[int], rows: int, columns: int, form: str, level: str
) -> Tensor:
    """Rows of a table on the CPU: index of integers of any shape, result (*index.shape, columns) float32.

    RequestError if an index is not in 0..rows-1.
    """
    places = index.to(torch.int64).contiguous()
    y = torch.empty((*index.shape, columns), dtype=torch.float32)
    wrong = torch.zeros(1, dtype=torch.int64)
    table = Table(rows, columns, tuple(arrays), tuple(numbers))
    operands = (places.data_ptr(), table_operands(table), y.data_ptr(), wrong.data_ptr())
    run_now(level, [gather_step(GatherSpec(level, form), table, places.numel(), *operands)])
    if int(wrong):
        refuse_index(int(wrong), rows)
    return y


def _fake(index: Tensor, arrays: Sequence[Tensor], numbers: Sequence[int], rows: int, columns: int, *_: Any) -> Tensor:
    return index.new_empty((*index.shape, columns), dtype=torch.float32)


_library.impl("gather_rows", gather_rows, "CPU")
torch.library.register_fake("tersor::gather_rows", _fake, lib=_library)
gather = torch.ops.tersor.gather_rows.default


class GatheredEmbedding(nn.Module):
    """Rows w[index] of a table in one of the forms of `rows`, float32.

    index of any integer type and shape, result (*index.shape, columns); RequestError for an index out of range. Where
    no compiled kernel can be trusted (`level` is None) torch looks up in a dense table.
    """

    def __init__(self, form: str, table: Table, level: str | None) -> None:
        super().__init__()
        self.form, self.level = form, level
        self.rows, self.columns, self.numbers = table.rows, table.columns, table.numbers
        self.names = tuple(f"array{i}" for i in range(len(table.arrays)))
        for name, array in zip(self.names, table.arrays, strict=True):
            self.register_buffer(name, array)

    @classmethod
    def of(cls, form: str, table: Table, level: str | None) -> GatheredEmbedding:
        """At the level asked for, or the next one whose kernel can be trusted."""
        trusted = trusted_rows(level, form)
        return cls(form, table, trusted.name if trusted else None)

    @property
    def table(self) -> Table:
        return Table(self.rows, self.columns, tuple(self.get_buffer(name) for name in self.names), self.numbers)

    def constants(self) -> tuple[Any, ...]:
        """The arguments of the operator that follow the index."""
        table = self.table
        return (list(table.arrays), list(table.numbers), self.rows, self.columns, self.form, self.level)

    def forward(self, index: Tensor) -> Tensor:
        if self.level is None:
            return nn.functional.embedding(index, self.dense())
        run = gather_rows if direct(index) else gather
        rows: Tensor = run(index, *self.constants())
        return rows

    def dense(self) -> Tensor:
        """w (n, k) float32."""
        return ROWS[self.form].dense(self.table)

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.columns}, form={self.form}, level={self.level}"


@cache
def _agrees(level: str, form: str) -> bool:
    """Whether the gather agrees with torch to the last bit on a small table."""
    sample = ROWS[form].sample(level_named(level), torch.Generator().manual_seed(0))
    table = sample.table
    y = gather_rows(sample.index, table.arrays, table.numbers, table.rows, table.columns, form, level)
    return torch.equal(y, ROWS[form].dense(table)[sample.index])


def trusted_rows(asked: str | None, form: str) -> Level | None:
    """The level asked for (default: `features.detect`) if its gather agrees here, else the next slower one that does,
    else None; warns on a mismatch.
    """
    level: Level | None = detect(asked)
    while level is not None and not _agrees(level.name, form):
        warnings.warn(f"the {level.name} kernel of {form} rows is wrong on this CPU; trying another", stacklevel=3)
        level = below(level)
    return level
