"""The micro-kernels that read rows of a table: one row, written or added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tersor.backends.numba.emitter import F32, I64, Emitter, Value, kernel
from tersor.backends.numba.features import level_named
from tersor.backends.numba.layout import ceil_to
from tersor.backends.numba.rows import ROWS, Sink


@dataclass(frozen=True)
class GatherSpec:
    """A gather of rows kept in one form, compiled for a level; `bags`: they are summed, not written."""

    level: str
    rows: str
    bags: bool = False

    @property
    def name(self) -> str:
        return f"{'bags' if self.bags else 'gather'}_{self.level}_{self.rows}"

    @property
    def unit(self) -> int:
        """Columns come in multiples of so many."""
        return ROWS[self.rows].unit(level_named(self.level))

    def work(self, columns: int) -> int:
        """Bytes of a row in whole units."""
        return 4 * ceil_to(columns, self.unit)


def make_row(spec: GatherSpec) -> Any:
    """row(y, number, table, columns): write row `number` to y, `columns` floats (at least 1) in whole units. `table` is
    the address of the operands of its form.
    """
    form = ROWS[spec.rows]

    @kernel(level_named(spec.level), 4)
    def row(e: Emitter, y: Value, number: Value, table: Value, columns: Value) -> None:
        form.emit(e, Sink(e, y, None), number, _operands(e, spec, table), columns)

    return row


def make_add_row(spec: GatherSpec) -> Any:
    """add_row(y, number, table, columns, weight): y += weight * row `number`; see `make_row`. `weight` is the address
    of a float.
    """
    form = ROWS[spec.rows]

    @kernel(level_named(spec.level), 5)
    def add_row(e: Emitter, y: Value, number: Value, table: Value, columns: Value, weight: Value) -> None:
        form.emit(e, Sink(e, y, e.load(weight, F32)), number, _operands(e, spec, table), columns)

    return add_row


def _operands(e: Emitter, spec: GatherSpec, table: Value) -> list[Value]:
    return [e.load(e.at(table, 8 * i), I64) for i in range(ROWS[spec.rows].operands)]


def make_divide(spec: GatherSpec) -> Any:
    """divide(y, count, divisor): `count` floats, at least one, by an integer."""

    @kernel(level_named(spec.level), 3, "void")
    def divide(e: Emitter, y: Value, count: Value, divisor: Value) -> None:
        by = e.b.sitofp(divisor, F32)

        def body(i: Value, _: list[Value]) -> list[Value]:
            at = e.at(y, e.times(i, 4))
            e.store(at, e.b.fdiv(e.load(at, F32), by))
            return []

        e.loop(count, [], body)

    return divide
