"""The micro-kernels that read rows of a table: one row is written, several are added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from tersor.backends.numba.emitter import F32, I64, Emitter, Value, kernel
from tersor.backends.numba.features import level_named
from tersor.backends.numba.layout import ceil_to
from tersor.backends.numba.rows import ROWS, Bag
from tersor.backends.numba.tiles import LINE

AHEAD = 8  # rows that are asked for before they are read


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
        form.emit(e, y, number, _operands(e, spec, table), columns)

    return row


def make_add_rows(spec: GatherSpec) -> Any:
    """add_rows(y, index, count, table, columns): y += the `count` rows (at least 1) whose numbers are at `index`, one
    after the other; see `make_row`.
    """
    form = ROWS[spec.rows]

    @kernel(level_named(spec.level), 5)
    def add_rows(e: Emitter, y: Value, index: Value, count: Value, table: Value, columns: Value) -> None:
        form.emit_sum(e, y, Bag(index, count), _operands(e, spec, table), columns)

    return add_rows


def make_add_weighted(spec: GatherSpec) -> Any:
    """add_weighted(y, index, count, table, columns, weights): the same of rows times their weights, floats at an
    address.
    """
    form = ROWS[spec.rows]

    @kernel(level_named(spec.level), 6)
    def add_weighted(
        e: Emitter, y: Value, index: Value, count: Value, table: Value, columns: Value, weights: Value
    ) -> None:
        form.emit_sum(e, y, Bag(index, count, weights), _operands(e, spec, table), columns)

    return add_weighted


def make_ask(spec: GatherSpec) -> Any:
    """ask(index, rows, table, columns): fetch the row whose number is at `index`, which is not among 0..rows-1 if it is
    wrong. Rows lie anywhere in the table: the processor cannot foresee them.
    """
    form = ROWS[spec.rows]

    @kernel(level_named(spec.level), 4)
    def ask(e: Emitter, index: Value, rows: Value, table: Value, columns: Value) -> None:
        number = e.load(index, I64)

        def fetch() -> None:
            place, size = form.place(e, number, _operands(e, spec, table), columns)

            def line(i: Value, _: list[Value]) -> list[Value]:
                e.prefetch(e.at(place, e.times(i, LINE)), nearest=True)
                return []

            e.loop(e.at(e.b.sdiv(e.at(size, -1), I64(LINE)), 1), [], line)

        e.branch(e.b.icmp_unsigned("<", number, rows), fetch, lambda: None)

    return ask


def _operands(e: Emitter, spec: GatherSpec, table: Value) -> list[Value]:
    return [e.load(e.at(table, 8 * i), I64) for i in range(ROWS[spec.rows].operands)]


def make_divide(spec: GatherSpec) -> Any:
    """divide(y, count, divisor): `count` floats, at least one, by an integer."""

    level = level_named(spec.level)

    @kernel(level, 3)
    def divide(e: Emitter, y: Value, count: Value, divisor: Value) -> None:
        by = e.b.sitofp(divisor, F32)
        vectors = e.b.sdiv(count, I64(level.lanes))
        whole = e.times(vectors, level.lanes)

        def over(count: Value, start: Value, kind: ir.Type, divisor: Value, size: int) -> None:
            def body(i: Value, _: list[Value]) -> list[Value]:
                at = e.at(start, e.times(i, size))
                e.store(at, e.b.fdiv(e.load(at, kind), divisor))
                return []

            def some() -> None:
                e.loop(count, [], body)

            e.branch(e.b.icmp_signed(">", count, I64(0)), some, lambda: None)

        over(vectors, y, e.floats, e.splat(by), 4 * level.lanes)
        over(e.b.sub(count, whole), e.at(y, e.times(whole, 4)), F32, by, 4)

    return divide
