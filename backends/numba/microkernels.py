"""The micro-kernel of a quantised linear: a few rows of activations times one panel of weights.

With activations x[m, k] ~ a[m, g] * q[m, k], q in -127..127, and weights w[n, k] = s[n, g] * (code[n, k] - center) +
shift[n, g]:

    y[m, n] = bias[n] + sum_g a[m, g] * (s[n, g] * sum_k (code - center) q + shift[n, g] * sum_k q)

The integer sum starts from -center * sum_k q, so that the unsigned codes go into the dot product as they are. Each row
carries a record, written by the quantiser: `start` int32[groups], `a` float[groups], `a * sum_k q` float[groups] and
the total of the latter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import types

from tersor.backends.numba.emitter import Emitter, Value, kernel
from tersor.backends.numba.features import level_named
from tersor.backends.numba.layout import STEP, Kind


@dataclass(frozen=True)
class LinearSpec:
    """What a compiled linear is specialised on; rows, columns and group sizes are known at run time only."""

    level: str
    width: int
    kind: Kind
    shifted: bool

    @property
    def name(self) -> str:
        return f"linear_{self.level}_{self.width}_{self.kind}{'_shifted' if self.shifted else ''}"


def _unpacked(e: Emitter, vector: Value, width: int, in_place: bool) -> list[Value]:
    """The `8 // width` vectors of unsigned bytes in one packed vector; `in_place` leaves plane i multiplied by
    2^(width * i).
    """
    if width == 8:
        return [vector]
    mask = (1 << width) - 1
    if in_place:
        return [e.b.and_(vector, e.byte_mask(mask << shift)) for shift in range(0, 8, width)]
    return [e.b.and_(e.shift_right(vector, shift), e.byte_mask(mask)) for shift in range(0, 8, width)]


class _Tile:
    """Emits `rows` activation rows times one panel."""

    def __init__(self, e: Emitter, spec: LinearSpec, rows: int) -> None:
        self.e, self.spec, self.rows = e, spec, rows
        level = e.level
        self.strips = level.strips
        self.vector = 4 * level.lanes  # bytes
        self.per = 8 // spec.width
        # One row leaves registers free: several accumulators an output hide the latency of the dot product, and packed
        # codes need no shift when each plane has its own.
        self.planes = (self.per if self.per > 1 else 2) if rows == 1 else 1
        self.in_place = rows == 1 and self.per > 1

    def outputs(self) -> list[tuple[int, int]]:
        return [(m, v) for m in range(self.rows) for v in range(self.strips)]

    def accumulate(self, starts: list[Value], q: list[Value], w: Value, steps: Value) -> list[Value]:
        """Integer sums over `steps * STEP` columns, from `starts` (one vector a row)."""
        e = self.e
        zero = e.int_vector(0)
        keys = [(m, v, p) for m, v in self.outputs() for p in range(self.planes)]
        vectors = STEP // (4 * self.per)  # packed vectors a step, per strip
        step_bytes = vectors * self.strips * self.vector

        def body(i: Value, carried: list[Value]) -> list[Value]:
            sums = dict(zip(keys, carried, strict=True))
            weights = e.at(w, e.times(i, step_bytes))
            inputs = [e.at(row, e.times(i, STEP)) for row in q]
            for t in range(vectors):
                packed = [e.load_ints(e.at(weights, (t * self.strips + v) * self.vector)) for v in range(self.strips)]
                unpacked = [_unpacked(e, vector, self.spec.width, self.in_place) for vector in packed]
                for part in range(self.per):
                    plane = (part if self.in_place else t) % self.planes
                    for m in range(self.rows):
                        values = e.broadcast_int(e.at(inputs[m], 4 * (t * self.per + part)))
                        for v in range(self.strips):
                            sums[m, v, plane] = e.dot(sums[m, v, plane], unpacked[v][part], values)
            return [sums[key] for key in keys]

        # With planes left in place the start joins the unshifted plane.
        sums = dict(zip(keys, e.loop(steps, [starts[m] if p == 0 else zero for m, _, p in keys], body), strict=True))
        result = []
        for m, v in self.outputs():
            total = sums[m, v, 0]
            for p in range(1, self.planes):
                plane = sums[m, v, p]
                if self.in_place:
                    plane = e.b.ashr(plane, e.int_vector(self.spec.width * p))
                total = e.b.add(total, plane)
            result.append(total)
        return result


def make_tile(spec: LinearSpec) -> Any:
    """tile(left, q, q_stride, record, record_stride, w, scale, shift, bias, y, y_stride, steps, groups) -> rows done.

    Multiplies as many rows as the largest tile not above `left` (at least 1 must be left) with one panel and stores
    y = product + bias. `steps` counts STEP columns a group. Order of the floating operations of a row: groups
    ascending, whatever the tile, so that a row's result does not depend on its neighbours.
    """
    level = level_named(spec.level)
    sizes = level.row_tiles if spec.kind == "row" else level.group_tiles
    emit = {"row": _emit_row, "activation": _emit_activation, "group": _emit_group}[spec.kind]

    @kernel(level, 13, types.int64)
    def tile(e: Emitter, left: Value, *arguments: Value) -> Value:
        b = e.b
        done = b.append_basic_block("tile_done")
        results = []
        for size in sizes:
            if size > 1:
                here, other = b.append_basic_block(f"tile{size}"), b.append_basic_block("smaller")
                b.cbranch(b.icmp_signed(">=", left, left.type(size)), here, other)
                b.position_at_end(here)
            emit(_Tile(e, spec, size), *arguments)
            results.append((size, b.block))
            b.branch(done)
            if size > 1:
                b.position_at_end(other)
        b.position_at_end(done)
        rows = b.phi(left.type)
        for size, block in results:
            rows.add_incoming(left.type(size), block)
        return rows

    return tile


@dataclass
class _Operands:
    """Addresses of one tile: rows of q, their records, and the panel's tensors."""

    q: list[Value]
    start: list[Value]
    scale: list[Value]
    weighted: list[Value]
    total: list[Value]
    y: list[Value]


def _operands(
    t: _Tile, q: Value, q_stride: Value, record: Value, stride: Value, y: Value, y_stride: Value, groups: Value
) -> _Operands:
    e = t.e
    plane = e.times(groups, 4)
    records = [e.at(record, e.times(stride, m)) for m in range(t.rows)]
    return _Operands(
        q=[e.opaque(e.at(q, e.times(q_stride, m))) for m in range(t.rows)],
        start=records,
        scale=[e.at(r, plane) for r in records],
        weighted=[e.at(r, plane, plane) for r in records],
        total=[e.at(r, e.times(plane, 3)) for r in records],
        y=[e.at(y, e.times(y_stride, m)) for m in range(t.rows)],
    )


def _finish(t: _Tile, sums: list[Value], o: _Operands, bias: Value, shift: Value | None) -> None:
    """Store sums + bias, plus total * shift where the shift is per row."""
    e = t.e
    biases = [e.load_floats(e.at(bias, v * t.vector)) for v in range(t.strips)]
    if shift is not None:
        shifts = [e.load_floats(e.at(shift, v * t.vector)) for v in range(t.strips)]
        totals = [e.broadcast_float(total) for total in o.total]
    for (m, v), value in zip(t.outputs(), sums, strict=True):
        offset = biases[v] if shift is None else e.fma(totals[m], shifts[v], biases[v])
        e.store(e.at(o.y[m], v * t.vector), e.b.fadd(value, offset))


def _emit_row(
    t: _Tile, q: Value, q_stride: Value, record: Value, record_stride: Value, w: Value, scale: Value, shift: Value,
    bias: Value, y: Value, y_stride: Value, steps: Value, groups: Value,
) -> None:  # fmt: skip
    """One scale per weight row and one per activation row: a single integer sum over all columns."""
    e = t.e
    o = _operands(t, q, q_stride, record, record_stride, y, y_stride, groups)
    sums = t.accumulate([e.broadcast_int(start) for start in o.start], o.q, w, steps)
    scales = [e.load_floats(e.at(scale, v * t.vector)) for v in range(t.strips)]
    factors = [e.broadcast_float(address) for address in o.scale]
    products = [
        e.b.fmul(e.to_float(total), e.b.fmul(scales[v], factors[m]))
        for (m, v), total in zip(t.outputs(), sums, strict=True)
    ]
    _finish(t, products, o, bias, shift if t.spec.shifted else None)


def _over_groups(
    t: _Tile,
    o: _Operands,
    w: Value,
    steps: Value,
    groups: Value,
    add: Callable[[Value, list[Value], list[Value]], list[Value]],
) -> list[Value]:
    """Loop over groups; `add(group, integer sums, floating sums)` gives the new floating sums."""
    e = t.e
    group_bytes = e.times(steps, STEP // (4 * t.per) * t.strips * t.vector)
    group_columns = e.times(steps, STEP)

    def body(g: Value, sums: list[Value]) -> list[Value]:
        starts = [e.broadcast_int(e.at(start, e.times(g, 4))) for start in o.start]
        columns = e.b.mul(g, group_columns)
        integers = t.accumulate(starts, [e.at(row, columns) for row in o.q], e.at(w, e.b.mul(g, group_bytes)), steps)
        return add(g, integers, sums)

    return e.loop(groups, [e.float_vector(0.0)] * (t.rows * t.strips), body)


def _emit_activation(
    t: _Tile, q: Value, q_stride: Value, record: Value, record_stride: Value, w: Value, scale: Value, shift: Value,
    bias: Value, y: Value, y_stride: Value, steps: Value, groups: Value,
) -> None:  # fmt: skip
    """One scale per weight row, one per group of activations."""
    e = t.e
    o = _operands(t, q, q_stride, record, record_stride, y, y_stride, groups)

    def add(g: Value, integers: list[Value], sums: list[Value]) -> list[Value]:
        factors = [e.broadcast_float(e.at(address, e.times(g, 4))) for address in o.scale]
        return [e.fma(e.to_float(i), factors[m], s) for (m, _), i, s in zip(t.outputs(), integers, sums, strict=True)]

    sums = _over_groups(t, o, w, steps, groups, add)
    scales = [e.load_floats(e.at(scale, v * t.vector)) for v in range(t.strips)]
    products = [e.b.fmul(total, scales[v]) for (_, v), total in zip(t.outputs(), sums, strict=True)]
    _finish(t, products, o, bias, shift if t.spec.shifted else None)


def _emit_group(
    t: _Tile, q: Value, q_stride: Value, record: Value, record_stride: Value, w: Value, scale: Value, shift: Value,
    bias: Value, y: Value, y_stride: Value, steps: Value, groups: Value,
) -> None:  # fmt: skip
    """One scale per group of weights and per group of activations (a row-wise activation scale is repeated)."""
    e = t.e
    o = _operands(t, q, q_stride, record, record_stride, y, y_stride, groups)
    panel = t.strips * t.vector

    def per_group(base: Value, g: Value) -> list[Value]:
        return [e.load_floats(e.at(base, e.times(g, panel), v * t.vector)) for v in range(t.strips)]

    def add(g: Value, integers: list[Value], sums: list[Value]) -> list[Value]:
        scales = per_group(scale, g)
        factors = [e.broadcast_float(e.at(address, e.times(g, 4))) for address in o.scale]
        new = [
            e.fma(e.b.fmul(e.to_float(i), factors[m]), scales[v], s)
            for (m, v), i, s in zip(t.outputs(), integers, sums, strict=True)
        ]
        if t.spec.shifted:
            shifts = per_group(shift, g)
            weighted = [e.broadcast_float(e.at(address, e.times(g, 4))) for address in o.weighted]
            new = [e.fma(weighted[m], shifts[v], s) for (m, v), s in zip(t.outputs(), new, strict=True)]
        return new

    _finish(t, _over_groups(t, o, w, steps, groups, add), o, bias, None)
