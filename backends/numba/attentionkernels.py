"""Micro-kernels that the forms of attention share."""

from __future__ import annotations

from typing import Any

from tersor.backends.numba.emitter import I64, Emitter, Value, kernel
from tersor.backends.numba.features import Level

STRIPS = 2  # vectors of queries held at once, and vectors of columns in a tile


def make_product(level: Level) -> Any:
    """product(left, a, a_stride, inner, b, b_stride, c, c_stride, factor, factor_stride) -> rows done.

    c[m, n] = factor[m] * sum_k a[m, k] b[k, n] for as many rows as the largest tile not above `left` and STRIPS
    vectors of columns; strides in bytes, `factor_stride` 0 for one factor. k ascends whatever the tile.
    """
    size = 4 * level.lanes
    tiles = (8, 4, 2, 1) if level.lanes == 16 else (4, 2, 1)  # a tile fits 32 or 16 registers

    def emit(
        e: Emitter, rows: int, a: Value, a_stride: Value, inner: Value, b: Value, b_stride: Value, c: Value,
        c_stride: Value, factor: Value, factor_stride: Value,
    ) -> None:  # fmt: skip
        sources = [e.opaque(e.at(a, e.times(a_stride, m))) for m in range(rows)]

        def body(k: Value, sums: list[Value]) -> list[Value]:
            line = e.at(b, e.times(b_stride, k))
            columns = [e.load_floats(e.at(line, v * size)) for v in range(STRIPS)]
            new = []
            for m in range(rows):
                value = e.broadcast_float(e.at(sources[m], e.times(k, 4)))
                new += [e.fma(value, columns[v], sums[m * STRIPS + v]) for v in range(STRIPS)]
            return new

        sums = e.loop(inner, [e.float_vector(0.0)] * (rows * STRIPS), body)
        for m in range(rows):
            scale = e.broadcast_float(e.at(factor, e.times(factor_stride, m)))
            for v in range(STRIPS):
                e.store(e.at(c, e.times(c_stride, m), v * size), e.b.fmul(sums[m * STRIPS + v], scale))

    @kernel(level, 10, "int64")
    def product(e: Emitter, left: Value, *arguments: Value) -> Value:
        b = e.b
        done = b.append_basic_block("product_done")
        results = []
        for rows in tiles:
            if rows > 1:
                here, other = b.append_basic_block(f"rows{rows}"), b.append_basic_block("fewer")
                b.cbranch(b.icmp_signed(">=", left, I64(rows)), here, other)
                b.position_at_end(here)
            emit(e, rows, *arguments)
            results.append((rows, b.block))
            b.branch(done)
            if rows > 1:
                b.position_at_end(other)
        b.position_at_end(done)
        count = b.phi(I64)
        for rows, block in results:
            count.add_incoming(I64(rows), block)
        return count

    return product


def make_add(level: Level, factor: float = 1.0) -> Any:
    """add(p, x, x_stride, keys): p += factor * x, `keys` rows of STRIPS vectors, those of x `x_stride` bytes apart."""
    size = 4 * level.lanes

    @kernel(level, 4)
    def add(e: Emitter, p: Value, x: Value, stride: Value, keys: Value) -> None:
        def body(key: Value, _: list[Value]) -> list[Value]:
            for v in range(STRIPS):
                target = e.at(p, e.times(key, STRIPS * size), v * size)
                more = e.load_floats(e.at(x, e.times(stride, key), v * size))
                e.store(target, e.fma(more, e.float_vector(factor), e.load_floats(target)))
            return []

        e.loop(keys, [], body)

    return add


def make_transpose(level: Level) -> Any:
    """transpose(target, source, stride, left, width): `left` rows of `width` floats, `stride` bytes apart, become the
    lanes of `width` rows of STRIPS vectors; lanes beyond `left` repeat the last row.
    """
    n = level.lanes

    @kernel(level, 5)
    def transpose(e: Emitter, target: Value, source: Value, stride: Value, left: Value, width: Value) -> None:
        b = e.b
        last = b.sub(left, I64(1))
        rows = []
        for m in range(STRIPS * n):
            row = b.select(b.icmp_signed("<", last, I64(m)), last, I64(m))
            rows.append(e.at(source, e.times(row, stride)))

        def block(i: Value, _: list[Value]) -> list[Value]:
            for v in range(STRIPS):
                vectors = [e.load_floats(e.at(row, e.times(i, 4 * n))) for row in rows[v * n : (v + 1) * n]]
                for d, lanes in enumerate(e.transpose(vectors)):
                    e.store(e.at(target, e.times(i, 4 * n * STRIPS * n), 4 * n * (d * STRIPS + v)), lanes)
            return []

        e.loop(b.sdiv(width, I64(n)), [], block)

    return transpose
