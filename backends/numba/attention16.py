"""Micro-kernels of attention whose inner products are of 16-bit integers, two to a lane: twice the rate of float32.

Keys K are rounded to K / c with c[d] = max_k |K[k, d]| / 4095, queries to c q in 4095 levels of the largest, so that a
score (before the scale) is off by at most

    sum_d c[d] |q[d]| / 2 + (width / 2) max_d c[d] |q[d]| + width max_d c[d] |q[d]| / 16380

which is width / 4095 of the largest product max_d |q[d]| max_k |K[k, d]|; in practice errors of both signs cancel.
Weights are 2^(s - max) in 8191 steps, within 6.4e-5 of the largest weight, and divided by the sum of what they were
rounded to. Values are rounded to 2047 levels of the largest of each column. Sums of products stay below 2^31: 4095^2
times 128 columns, and 8191 * 2047 times 128 keys, after which they are added in float32.

Scores lie transposed, one row a key and one lane a query: the softmax then runs down the lanes without a horizontal
sum, and the weights of one key stand side by side for the product with the values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from tersor.backends.numba.attentionkernels import STRIPS
from tersor.backends.numba.emitter import I16, I64, Emitter, Value, kernel
from tersor.backends.numba.features import level_named

SIDE = 4095.0  # levels of queries and keys on each side of 0
WEIGHT = 8191.0  # the largest weight
VALUE = 2047.0  # levels of values on each side of 0
CHUNK = 64  # pairs of keys whose products are summed in integers
WIDEST = 128  # columns of a head
LOG2E = 1.4426950408889634
_HIDDEN = -1e30  # a query whose scores all lie below sees nothing
_LEAST = -60.0  # exponents below are as good as none
# 2^f, highest power first: minimax fits of the relative error, 2.6e-6, on |f| <= 1/2 and on 0 <= f <= 1.
_AROUND = (0.00957010183, 0.0559178603, 0.240247448, 0.693121815, 0.999999261)
_ABOVE = (0.0135341679, 0.0520114607, 0.241442757, 0.693003834, 1.00000259)


@dataclass(frozen=True)
class Attention16Spec:
    """Attention in 16-bit integers compiled for a level."""

    level: str

    @property
    def name(self) -> str:
        return f"attention16_{self.level}"


def _inverse(e: Emitter, scale: Value) -> Value:
    """1 / scale, 0 where the scale is not positive."""
    zero = e.float_vector(0.0)
    return e.b.select(e.b.fcmp_ordered(">", scale, zero), e.b.fdiv(e.float_vector(1.0), scale), zero)


def _pair(e: Emitter, low: Value, high: Value) -> Value:
    """Two vectors of integers as the 16-bit halves of one."""
    return e.b.or_(e.b.and_(low, e.int_vector(0xFFFF)), e.b.shl(high, e.int_vector(16)))


def _power(e: Emitter, x: Value) -> Value:
    """WEIGHT * 2^x for x <= 0, at least 2^_LEAST."""
    b = e.b
    if e.level.lanes == 16:
        f = e.above_floor(x)
    else:
        least = e.float_vector(_LEAST)
        x = b.select(b.fcmp_ordered("<", x, least), least, x)
        n = e.to_int(x)
        f = b.fsub(x, e.to_float(n))
    coefficients = _ABOVE if e.level.lanes == 16 else _AROUND
    power = e.float_vector(WEIGHT * coefficients[0])
    for c in coefficients[1:]:
        power = e.fma(power, f, e.float_vector(WEIGHT * c))
    if e.level.lanes == 16:
        return e.scale_by_floor(power, x)
    return b.bitcast(b.add(b.bitcast(power, e.ints), b.shl(n, e.int_vector(23))), e.floats)


def make_columns(spec: Attention16Spec, limit: float) -> Any:
    """columns(scale, x, stride, rows, width): scale[d] = max_m |x[m, d]| / limit; rows `stride` bytes apart."""
    level = level_named(spec.level)
    size = 4 * level.lanes

    @kernel(level, 5)
    def columns(e: Emitter, scale: Value, x: Value, stride: Value, rows: Value, width: Value) -> None:
        def vector(i: Value, _: list[Value]) -> list[Value]:
            place = e.times(i, size)

            def row(m: Value, bits: list[Value]) -> list[Value]:
                value = e.load_floats(e.at(x, e.times(stride, m), place))
                return [e.maximum_int(bits[0], e.absolute_bits(value))]

            peak = e.b.bitcast(e.loop(rows, [e.int_vector(0)], row)[0], e.floats)
            e.store(e.at(scale, place), e.b.fmul(peak, e.float_vector(1 / limit)))
            return []

        e.loop(e.b.sdiv(width, I64(level.lanes)), [], vector)

    return columns


def make_keys(spec: Attention16Spec) -> Any:
    """keys(target, x, stride, rows, width, scale): x / scale rounded to adjacent rows of 16-bit integers."""
    level = level_named(spec.level)
    n = level.lanes
    short = ir.VectorType(I16, n)

    @kernel(level, 6)
    def keys(e: Emitter, target: Value, x: Value, stride: Value, rows: Value, width: Value, scale: Value) -> None:
        def vector(i: Value, _: list[Value]) -> list[Value]:
            place = e.times(i, 4 * n)
            inverse = _inverse(e, e.load_floats(e.at(scale, place)))

            def row(m: Value, _: list[Value]) -> list[Value]:
                value = e.b.fmul(e.load_floats(e.at(x, e.times(stride, m), place)), inverse)
                e.store(
                    e.at(target, e.times(e.times(width, m), 2), e.times(i, 2 * n)), e.b.trunc(e.to_int(value), short)
                )
                return []

            return e.loop(rows, [], row)

        e.loop(e.b.sdiv(width, I64(n)), [], vector)

    return keys


def make_values(spec: Attention16Spec) -> Any:
    """values(target, x, stride, rows, width, scale): x / scale rounded to 16-bit integers; lane d of line j holds rows
    2j and 2j + 1, a missing last row as 0.
    """
    level = level_named(spec.level)
    n = level.lanes

    @kernel(level, 6)
    def values(e: Emitter, target: Value, x: Value, stride: Value, rows: Value, width: Value, scale: Value) -> None:
        b = e.b
        last = b.sub(rows, I64(1))

        def vector(i: Value, _: list[Value]) -> list[Value]:
            place = e.times(i, 4 * n)
            inverse = _inverse(e, e.load_floats(e.at(scale, place)))

            def pair(j: Value, _: list[Value]) -> list[Value]:
                first = e.times(j, 2)
                there = b.icmp_signed("<", first, last)
                second = b.select(there, b.add(first, I64(1)), first)
                low, high = (
                    e.to_int(b.fmul(e.load_floats(e.at(x, e.times(stride, m), place)), inverse))
                    for m in (first, second)
                )
                high = b.select(there, high, e.int_vector(0))
                e.store(e.at(target, e.times(e.times(width, j), 4), place), _pair(e, low, high))
                return []

            return e.loop(b.sdiv(b.add(rows, I64(1)), I64(2)), [], pair)

        e.loop(b.sdiv(width, I64(n)), [], vector)

    return values


def make_queries(spec: Attention16Spec) -> Any:
    """queries(target, scale, x, width, columns, factor): x, `width` lines of STRIPS vectors of queries, times
    columns[d] and rounded to SIDE levels of the largest of each lane; line j of `target` holds lines 2j and 2j + 1.
    scale = factor (a float's address) * log2(e) * that largest / SIDE, by lanes.
    """
    level = level_named(spec.level)
    size = 4 * level.lanes
    strips = range(STRIPS)

    @kernel(level, 6)
    def queries(e: Emitter, target: Value, scale: Value, x: Value, width: Value, columns: Value, factor: Value) -> None:
        b = e.b

        def scaled(d: Value) -> list[Value]:
            column = e.broadcast_float(e.at(columns, e.times(d, 4)))
            return [b.fmul(e.load_floats(e.at(x, e.times(d, STRIPS * size), v * size)), column) for v in strips]

        def largest(d: Value, bits: list[Value]) -> list[Value]:
            return [e.maximum_int(old, e.absolute_bits(new)) for old, new in zip(bits, scaled(d), strict=True)]

        bits = e.loop(width, [e.int_vector(0)] * STRIPS, largest)
        steps = [b.fmul(b.bitcast(peak, e.floats), e.float_vector(1 / SIDE)) for peak in bits]
        inverses = [_inverse(e, step) for step in steps]
        times = b.fmul(e.broadcast_float(factor), e.float_vector(LOG2E))
        for v in strips:
            e.store(e.at(scale, v * size), b.fmul(steps[v], times))

        def pair(j: Value, _: list[Value]) -> list[Value]:
            low, high = (scaled(b.add(e.times(j, 2), I64(k))) for k in (0, 1))
            for v in strips:
                codes = [e.to_int(b.fmul(part[v], inverses[v])) for part in (low, high)]
                e.store(e.at(target, e.times(j, STRIPS * size), v * size), _pair(e, codes[0], codes[1]))
            return []

        e.loop(b.sdiv(width, I64(2)), [], pair)

    return queries


def _tiles(lanes: int) -> tuple[int, ...]:
    return (8, 4, 2, 1) if lanes == 16 else (4, 2, 1)


def make_scores(spec: Attention16Spec) -> Any:
    """scores(p, keys, count, width, queries, scale): p[k, lane] = scale[lane] * sum_d keys[k, d] queries[d, lane] for
    `count` keys.
    """
    level = level_named(spec.level)
    size = 4 * level.lanes
    strips = range(STRIPS)

    @kernel(level, 6)
    def scores(e: Emitter, p: Value, keys: Value, count: Value, width: Value, queries: Value, scale: Value) -> None:
        b = e.b
        line = e.times(width, 2)
        pairs = b.sdiv(width, I64(2))
        scales = [e.load_floats(e.at(scale, v * size)) for v in strips]

        def tile(first: Value, rows: int) -> None:
            sources = [e.opaque(e.at(keys, e.times(line, b.add(first, I64(m))))) for m in range(rows)]

            def body(j: Value, sums: list[Value]) -> list[Value]:
                lanes = [e.load_ints(e.at(queries, e.times(j, STRIPS * size), v * size)) for v in strips]
                new = []
                for m in range(rows):
                    pair = e.broadcast_int(e.at(sources[m], e.times(j, 4)))
                    new += [e.dot_pairs(sums[m * STRIPS + v], lanes[v], pair) for v in strips]
                return new

            sums = e.loop(pairs, [e.int_vector(0)] * (rows * STRIPS), body)
            for i, total in enumerate(sums):
                place = e.at(p, e.times(first, STRIPS * size), i * size)
                e.store(place, b.fmul(e.to_float(total), scales[i % STRIPS]))

        e.ladder(count, _tiles(level.lanes), tile)

    return scores


def make_causal(spec: Attention16Spec) -> Any:
    """causal(p, first, keys, seen): hide key k of first..keys from the lanes below k - seen, that is from queries that
    see only `seen` keys and one more for each lane.
    """
    level = level_named(spec.level)
    n = level.lanes

    @kernel(level, 4)
    def causal(e: Emitter, p: Value, first: Value, keys: Value, seen: Value) -> None:
        b = e.b

        def body(i: Value, _: list[Value]) -> list[Value]:
            key = b.add(first, i)
            limit = e.splat(b.trunc(b.sub(key, seen), e.ints.element))
            for v in range(STRIPS):
                lanes = ir.Constant(e.ints, [v * n + lane for lane in range(n)])
                place = e.at(p, e.times(key, 4 * STRIPS * n), 4 * v * n)
                hidden = b.icmp_signed("<=", lanes, limit)
                e.store(place, b.select(hidden, e.float_vector(float("-inf")), e.load_floats(place)))
            return []

        def run() -> None:
            e.loop(b.sub(keys, first), [], body)

        e.branch(b.icmp_signed("<", first, keys), run, lambda: None)

    return causal


def make_softmax(spec: Attention16Spec) -> Any:
    """softmax(target, p, keys, scale, inverse): weights WEIGHT * 2^(p - max p), rounded, down STRIPS vectors of lanes;
    line j of `target` holds keys 2j and 2j + 1, a missing last key as 0. inverse = 1 / sum of the weights (0 where
    every score is hidden, NaN where `scale` is not finite).
    """
    level = level_named(spec.level)
    size = 4 * level.lanes
    strips = range(STRIPS)

    @kernel(level, 5)
    def softmax(e: Emitter, target: Value, p: Value, keys: Value, scale: Value, inverse: Value) -> None:
        b = e.b

        def at(key: Value, v: int) -> Value:
            return e.at(p, e.times(key, STRIPS * size), v * size)

        def highest(key: Value, found: list[Value]) -> list[Value]:
            return [e.maximum(found[v], e.load_floats(at(key, v))) for v in strips]

        tops = e.loop(keys, [e.float_vector(_HIDDEN)] * STRIPS, highest)

        def weight(key: Value, v: int) -> Value:
            return e.to_int(_power(e, b.fsub(e.load_floats(at(key, v)), tops[v])))

        ones = e.int_vector(0x00010001)

        def pair(j: Value, totals: list[Value]) -> list[Value]:
            first = e.times(j, 2)
            new = []
            for v in strips:
                low, high = weight(first, v), weight(b.add(first, I64(1)), v)
                both = b.or_(low, b.shl(high, e.int_vector(16)))  # no weight is negative
                e.store(e.at(target, e.times(j, STRIPS * size), v * size), both)
                new.append(e.dot_pairs(totals[v], both, ones))
            return new

        # An odd number of keys is made even with one that is hidden.
        for v in strips:
            e.store(at(keys, v), e.float_vector(float("-inf")))
        pairs = b.sdiv(b.add(keys, I64(1)), I64(2))
        totals = e.loop(pairs, [e.int_vector(0)] * STRIPS, pair)
        for v in strips:
            share = _inverse(e, e.to_float(totals[v]))
            seen = b.fcmp_ordered(">", tops[v], e.float_vector(_HIDDEN))
            share = b.select(seen, share, e.float_vector(0.0))
            spoiled = b.fmul(e.load_floats(e.at(scale, v * size)), e.float_vector(0.0))
            e.store(e.at(inverse, v * size), b.fadd(share, spoiled))

    return softmax


def make_mix(spec: Attention16Spec) -> Any:
    """mix(y, y_stride, count, weights, inverse, values, width, pairs, scale): y[m, d] = inverse[m] scale[d] sum_k
    weights[k, m] values[k, d] for `count` lanes m and STRIPS vectors of columns d, of `pairs` pairs of keys; lines of
    values are `width` lanes.
    """
    level = level_named(spec.level)
    size = 4 * level.lanes
    strips = range(STRIPS)

    @kernel(level, 9)
    def mix(
        e: Emitter, y: Value, y_stride: Value, count: Value, weights: Value, inverse: Value, values: Value,
        width: Value, pairs: Value, scale: Value,
    ) -> None:  # fmt: skip
        b = e.b
        scales = [e.load_floats(e.at(scale, v * size)) for v in strips]

        def tile(first: Value, rows: int) -> None:
            lane = e.at(weights, e.times(first, 4))

            def chunk(c: Value, sums: list[Value]) -> list[Value]:
                start = e.times(c, CHUNK)
                left = b.sub(pairs, start)
                here = b.select(b.icmp_signed("<", left, I64(CHUNK)), left, I64(CHUNK))

                def body(i: Value, totals: list[Value]) -> list[Value]:
                    j = b.add(start, i)
                    line = e.at(values, e.times(e.times(width, j), 4))
                    columns = [e.load_ints(e.at(line, v * size)) for v in strips]
                    new = []
                    for m in range(rows):
                        pair = e.broadcast_int(e.at(lane, e.times(j, STRIPS * size), 4 * m))
                        new += [e.dot_pairs(totals[m * STRIPS + v], columns[v], pair) for v in strips]
                    return new

                totals = e.loop(here, [e.int_vector(0)] * len(sums), body)
                return [b.fadd(s, e.to_float(total)) for s, total in zip(sums, totals, strict=True)]

            chunks = b.sdiv(b.add(pairs, I64(CHUNK - 1)), I64(CHUNK))
            sums = e.loop(chunks, [e.float_vector(0.0)] * (rows * STRIPS), chunk)
            for m in range(rows):
                row = b.add(first, I64(m))
                share = e.broadcast_float(e.at(inverse, e.times(row, 4)))
                for v in strips:
                    place = e.at(y, e.times(y_stride, row), v * size)
                    e.store(place, b.fmul(sums[m * STRIPS + v], b.fmul(share, scales[v])))

        e.ladder(count, _tiles(level.lanes), tile)

    return mix
