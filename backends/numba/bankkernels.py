"""Micro-kernel of a linear over banks of columns, of each of which every output keeps as many: rows of rounded
activations times one panel of codes.

A bank is `tables` times 16 columns, `quads` times four of them are kept. Outputs lie in lanes, four kept columns of one
output in one:

    codes, places  [panel][bank][quad][strip][lane][4]   signed bytes, and the column's number in its bank
    start          [panel][group][output]   int32: -128 * sum of the codes             scale  likewise, float32

    y[m, n] = bias[n] + a[m] * sum_g scale[n, g] * (start[n, g] + sum of code * x[place])

with x bytes: the rounded activation + 128. A byte shuffle finds the activations of all outputs of a vector in 16
columns at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from tersor.backends.numba.emitter import I32, I64, Emitter, Value, kernel
from tersor.backends.numba.features import level_named

TABLE = 16  # bytes that a shuffle chooses from


@dataclass(frozen=True)
class BankSpec:
    """What a compiled linear over banks is specialised on."""

    level: str
    tables: int
    quads: int

    @property
    def name(self) -> str:
        return f"banks_{self.level}_{self.tables}_{self.quads}"

    @property
    def bank(self) -> int:
        """Columns of a bank."""
        return TABLE * self.tables

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of the tiles."""
        level = level_named(self.level)
        return level.row_tiles if self.tables == 1 else level.group_tiles


class _Banks:
    """Emits rows times a panel; see `make_banks`."""

    def __init__(self, e: Emitter, spec: BankSpec, arguments: tuple[Value, ...]) -> None:
        self.e, self.spec = e, spec
        self.strips, self.vector = e.level.strips, 4 * e.level.lanes
        self.x, self.x_stride, self.codes, self.places, self.banks, self.groups = arguments[:6]
        self.start, self.scale, self.record, self.record_stride, self.bias, self.y, self.y_stride = arguments[6:]

    def tile(self, row: Value, rows: int) -> None:
        e = self.e
        keys = [(m, v) for m in range(rows) for v in range(self.strips)]
        at_row = [e.b.add(row, I64(m)) for m in range(rows)]
        inputs = [e.opaque(e.at(self.x, e.times(self.x_stride, m))) for m in at_row]
        line = self.strips * self.vector

        def group(g: Value, totals: list[Value]) -> list[Value]:
            here = e.times(g, line)
            starts = [e.load_ints(e.at(self.start, here, v * self.vector)) for v in range(self.strips)]
            first = e.b.mul(g, self.banks)

            def bank(i: Value, sums: list[Value]) -> list[Value]:
                return self.bank(e.b.add(first, i), inputs, keys, sums)

            sums = e.loop(self.banks, [starts[v] for _, v in keys], bank)
            scales = [e.load_floats(e.at(self.scale, here, v * self.vector)) for v in range(self.strips)]
            return [
                e.fma(e.to_float(value), scales[v], total)
                for (_, v), value, total in zip(keys, sums, totals, strict=True)
            ]

        totals = e.loop(self.groups, [e.float_vector(0.0)] * len(keys), group)
        factors = [e.broadcast_float(e.at(self.record, e.times(self.record_stride, m), 4)) for m in at_row]
        biases = [e.load_floats(e.at(self.bias, v * self.vector)) for v in range(self.strips)]
        for (m, v), total in zip(keys, totals, strict=True):
            place = e.at(self.y, e.times(self.y_stride, at_row[m]), v * self.vector)
            e.store(place, e.fma(total, factors[m], biases[v]))

    def bank(self, bank: Value, inputs: list[Value], keys: list[tuple[int, int]], sums: list[Value]) -> list[Value]:
        e, spec = self.e, self.spec
        sums = list(sums)
        columns = e.times(bank, spec.bank)
        tables = [[self.table(e.at(x, columns, TABLE * t)) for t in range(spec.tables)] for x in inputs]
        line = self.strips * self.vector
        for q in range(spec.quads):
            here = e.at(e.times(bank, spec.quads * line), q * line)
            for v in range(self.strips):
                codes = e.load_ints(e.at(self.codes, here, v * self.vector))
                places = self.split(e.load_ints(e.at(self.places, here, v * self.vector)))
                for i, (m, strip) in enumerate(keys):
                    if strip == v:
                        found = [e.look_up(table, place) for table, place in zip(tables[m], places, strict=True)]
                        while len(found) > 1:
                            found = [e.b.or_(a, b) for a, b in zip(found[::2], found[1::2], strict=True)]
                        sums[i] = e.dot(sums[i], found[0], codes)
        return sums

    def table(self, address: Value) -> Value:
        """16 bytes in every 128 bits."""
        e = self.e
        quarter = e.load(address, ir.VectorType(I32, 4))
        order = ir.Constant(e.ints, [i % 4 for i in range(e.level.lanes)])
        return e.b.shuffle_vector(quarter, ir.Constant(quarter.type, ir.Undefined), order)

    def split(self, places: Value) -> list[Value]:
        """For each table the places in it; others have their highest bit set, for which a shuffle gives 0."""
        e = self.e
        if self.spec.tables == 1:
            return [places]
        found = []
        for t in range(self.spec.tables):
            own = e.b.bitcast(e.b.xor(places, e.byte_mask(TABLE * t)), e.bytes)
            found.append(e.b.bitcast(e.b.add(own, e.constant(e.bytes, 128 - TABLE)), e.ints))
        return found


def make_banks(spec: BankSpec) -> Any:
    """banks(count, x, x_stride, codes, places, banks, groups, start, scale, record, record_stride, bias, y, y_stride):
    `count` rows times one panel; `banks` are those of a group.
    """

    @kernel(level_named(spec.level), 14)
    def banks(e: Emitter, count: Value, *arguments: Value) -> None:
        emitted = _Banks(e, spec, arguments)
        e.ladder(count, spec.sizes, emitted.tile)

    return banks
