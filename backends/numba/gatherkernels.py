"""The micro-kernels that write one row of a table, in every form a table is kept in but affine codes.

floats   [row][padded columns]                  w = stored * factor
codes8   [row][columns] bytes                   w = levels[code]
codes4   [row][ceil(columns / 2)] bytes         the same, the even column in the low half of a byte
sparse   [kept] floats and 16-bit columns, with the place of every row's first    w = 0 but for the kept
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from llvmlite import ir

from tersor.backends.numba.densekernels import load_weights
from tersor.backends.numba.emitter import F32, I8, I16, I32, I64, Emitter, Value, kernel
from tersor.backends.numba.features import level_named

Rows = Literal["float32", "float16", "bfloat16", "codes8", "codes4", "sparse"]


@dataclass(frozen=True)
class GatherSpec:
    """A gather of rows kept in one form, compiled for a level."""

    level: str
    rows: Rows

    @property
    def name(self) -> str:
        return f"gather_{self.level}_{self.rows}"


def make_row(spec: GatherSpec) -> Any:
    """row(y, number, data, second, third, columns): write row `number` to y, `columns` floats (at least 1).

    `data`, `second` and `third` are: of floats the table, the bits of the factor, -; of codes the codes, the levels,
    -; of a sparse table the values, their columns, and the first place of every row (int64, one more than rows).
    Floats are written in whole vectors.
    """
    level = level_named(spec.level)
    emit = {"codes8": _emit_codes, "codes4": _emit_codes, "sparse": _emit_sparse}.get(spec.rows, _emit_floats)

    @kernel(level, 6)
    def row(e: Emitter, *arguments: Value) -> None:
        emit(e, spec.rows, *arguments)

    return row


def _emit_floats(
    e: Emitter, storage: Rows, y: Value, number: Value, data: Value, second: Value, _: Value, columns: Value
) -> None:
    lanes, size = e.level.lanes, 4 if storage == "float32" else 2
    vectors = e.b.sdiv(e.at(columns, lanes - 1), I64(lanes))
    source = e.at(data, e.b.mul(number, e.times(vectors, lanes * size)))
    factor = e.splat(e.b.bitcast(e.b.trunc(second, I32), F32))

    def body(i: Value, _: list[Value]) -> list[Value]:
        value = load_weights(e, e.at(source, e.times(i, lanes * size)), storage)
        e.store(e.at(y, e.times(i, 4 * lanes)), e.b.fmul(value, factor))
        return []

    e.loop(vectors, [], body)


def _emit_codes(
    e: Emitter, rows: Rows, y: Value, number: Value, data: Value, levels: Value, _: Value, columns: Value
) -> None:
    b = e.b
    source = e.at(data, b.mul(number, columns if rows == "codes8" else b.sdiv(e.at(columns, 1), I64(2))))

    def body(i: Value, _: list[Value]) -> list[Value]:
        code = b.zext(e.load(e.at(source, i if rows == "codes8" else b.lshr(i, I64(1))), I8), I64)
        if rows == "codes4":
            code = b.and_(b.lshr(code, b.shl(b.and_(i, I64(1)), I64(2))), I64(15))
        e.store(e.at(y, e.times(i, 4)), e.load(e.at(levels, e.times(code, 4)), F32))
        return []

    e.loop(columns, [], body)


def _emit_sparse(
    e: Emitter, _: Rows, y: Value, number: Value, values: Value, places: Value, starts: Value, columns: Value
) -> None:
    b = e.b

    def clear(i: Value, _: list[Value]) -> list[Value]:
        e.store(e.at(y, e.times(i, 4)), F32(0.0))
        return []

    e.loop(columns, [], clear)
    start = e.load(e.at(starts, e.times(number, 8)), I64)
    count = b.sub(e.load(e.at(starts, e.times(number, 8), 8), I64), start)

    def scatter(i: Value, _: list[Value]) -> list[Value]:
        at = b.add(start, i)
        column = b.zext(e.load(e.at(places, e.times(at, 2)), I16), I64)
        e.store(e.at(y, e.times(column, 4)), e.load(e.at(values, e.times(at, 4)), F32))
        return []

    with b.if_then(b.icmp_signed(">", count, ir.Constant(I64, 0))):
        e.loop(count, [], scatter)
