"""Micro-kernels of attention in float32: a small matrix product and a softmax row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numba import types

from tersor.backends.numba.elementwise import exp
from tersor.backends.numba.emitter import F32, I64, Emitter, Value, kernel
from tersor.backends.numba.features import level_named

STRIPS = 2  # vectors of columns in a tile
TILES = (6, 4, 2, 1)  # rows in a tile
_HIDDEN = -1e30  # a row whose scores all lie below is hidden entirely


@dataclass(frozen=True)
class AttentionSpec:
    """Attention compiled for a level."""

    level: str

    @property
    def name(self) -> str:
        return f"attention_{self.level}"


def make_product(spec: AttentionSpec) -> Any:
    """product(left, a, a_stride, inner, b, b_stride, c, c_stride, factor, factor_stride) -> rows done.

    c[m, n] = factor[m] * sum_k a[m, k] b[k, n] for as many rows as the largest tile not above `left` and STRIPS
    vectors of columns; strides in bytes, `factor_stride` 0 for one factor. k ascends whatever the tile.
    """
    level = level_named(spec.level)
    size = 4 * level.lanes

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

    @kernel(level, 10, types.int64)
    def product(e: Emitter, left: Value, *arguments: Value) -> Value:
        b = e.b
        done = b.append_basic_block("product_done")
        results = []
        for rows in TILES:
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


def make_softmax(spec: AttentionSpec) -> Any:
    """softmax(p, vectors, inverse): p = e^(p - max p) in place, and 1 / sum p (0 where every score is hidden)."""
    level = level_named(spec.level)
    size = 4 * level.lanes

    @kernel(level, 3)
    def softmax(e: Emitter, p: Value, vectors: Value, inverse: Value) -> None:
        b = e.b

        def highest(i: Value, found: list[Value]) -> list[Value]:
            return [e.maximum(found[0], e.load_floats(e.at(p, e.times(i, size))))]

        highs = e.loop(vectors, [e.float_vector(_HIDDEN)], highest)[0]
        peak = e.call(f"llvm.vector.reduce.fmax.v{level.lanes}f32", F32, highs)
        top = e.splat(peak)

        def power(i: Value, total: list[Value]) -> list[Value]:
            address = e.at(p, e.times(i, size))
            value = exp(e, b.fsub(e.load_floats(address), top))
            e.store(address, value)
            return [b.fadd(total[0], value)]

        total = e.reduce_add(e.loop(vectors, [e.float_vector(0.0)], power)[0])
        e.store(inverse, b.select(b.fcmp_ordered(">", peak, F32(_HIDDEN)), b.fdiv(F32(1.0), total), F32(0.0)))

    return softmax


def make_add(spec: AttentionSpec) -> Any:
    """add(y, x, count): y += x for `count` floats, at least one."""
    level = level_named(spec.level)

    @kernel(level, 3)
    def add(e: Emitter, y: Value, x: Value, count: Value) -> None:
        def body(i: Value, _: list[Value]) -> list[Value]:
            place = e.times(i, 4)
            e.store(e.at(y, place), e.b.fadd(e.load(e.at(y, place), F32), e.load(e.at(x, place), F32)))
            return []

        e.loop(count, [], body)

    return add


def make_hide(spec: AttentionSpec) -> Any:
    """hide(y, count): `count` floats, at least one, become minus infinity."""
    level = level_named(spec.level)

    @kernel(level, 2)
    def hide(e: Emitter, y: Value, count: Value) -> None:
        def body(i: Value, _: list[Value]) -> list[Value]:
            e.store(e.at(y, e.times(i, 4)), F32(float("-inf")))
            return []

        e.loop(count, [], body)

    return hide


def make_transpose(spec: AttentionSpec) -> Any:
    """transpose(target, step, source, count): target[i * step] = source[i] for `count` floats, `step` in bytes."""
    level = level_named(spec.level)

    @kernel(level, 4)
    def transpose(e: Emitter, target: Value, step: Value, source: Value, count: Value) -> None:
        def body(i: Value, _: list[Value]) -> list[Value]:
            e.store(e.at(target, e.times(step, i)), e.load(e.at(source, e.times(i, 4)), F32))
            return []

        e.loop(count, [], body)

    return transpose
