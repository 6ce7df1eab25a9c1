"""Micro-kernels of decoders: rotary positions, and a row-wise softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from tersor.backends.numba.elementwise import exp
from tersor.backends.numba.emitter import F32, I32, I64, Emitter, Value, kernel
from tersor.backends.numba.features import Level

_HIDDEN = -1e30  # a query whose scores all lie below sees nothing


@dataclass(frozen=True)
class RotarySpec:
    """Rotation by position compiled for a level."""

    level: str

    @property
    def name(self) -> str:
        return f"rotary_{self.level}"


@dataclass(frozen=True)
class AppendSpec:
    """The writing of keys and values for `attend`, compiled for a level."""

    level: str

    @property
    def name(self) -> str:
        return f"append_{self.level}"


@dataclass(frozen=True)
class AttendSpec:
    """Attention over keys and values written before, compiled for a level."""

    level: str

    @property
    def name(self) -> str:
        return f"attend_{self.level}"


def make_rotate(level: Level) -> Any:
    """rotate(y, x, cos, sin, half): y = x cos + (-x2, x1) sin for a row x = (x1, x2) of twice `half` floats; y is not
    x.
    """

    @kernel(level, 5)
    def rotate(e: Emitter, y: Value, x: Value, cos: Value, sin: Value, half: Value) -> None:
        b = e.b
        lanes = level.lanes
        far = e.times(half, 4)

        def piece(offset: Value, kind: ir.Type) -> None:
            one, other = (e.load(e.at(x, offset, shift), kind) for shift in (0, far))
            for shift, mine, turned in ((0, one, b.fneg(other)), (far, other, one)):
                c, s = (e.load(e.at(table, offset, shift), kind) for table in (cos, sin))
                e.store(e.at(y, offset, shift), b.fadd(b.fmul(mine, c), b.fmul(turned, s)))

        whole = b.sdiv(half, I64(lanes))
        for count, kind, start in (
            (whole, e.floats, I64(0)),
            (b.srem(half, I64(lanes)), F32, e.times(whole, 4 * lanes)),
        ):
            with b.if_then(b.icmp_signed(">", count, I64(0))):

                def body(i: Value, _: list[Value], kind: Any = kind, start: Value = start) -> list[Value]:
                    piece(e.at(start, e.times(i, 4 if kind is F32 else 4 * lanes)), kind)
                    return []

                e.loop(count, [], body)

    return rotate


def make_row_softmax(level: Level) -> Any:
    """softmax(p, count, vectors, mask, inverse): p = e^(z - max z) with z = p + mask (0: none) for the first `count` of
    `vectors` whole vectors, about 0 for the rest, and 1 / sum p (0 where every score is hidden).
    """

    @kernel(level, 5)
    def softmax(e: Emitter, p: Value, count: Value, vectors: Value, mask: Value, inverse: Value) -> None:
        b = e.b
        size = 4 * level.lanes
        lane = ir.Constant(e.ints, list(range(level.lanes)))
        limit = e.splat(b.trunc(count, I32))
        low = e.float_vector(-float("inf"))
        masked = b.icmp_signed("!=", mask, I64(0))
        source = b.select(masked, mask, p)
        weight = b.select(masked, e.float_vector(1.0), e.float_vector(0.0))

        def highest(i: Value, found: list[Value]) -> list[Value]:
            place = e.at(p, e.times(i, size))
            value = e.load_floats(place)
            with_mask = b.fadd(value, e.load_floats(e.at(source, e.times(i, size))))
            value = b.select(b.fcmp_ordered(">", weight, e.float_vector(0.5)), with_mask, value)
            index = b.add(lane, e.splat(b.trunc(e.times(i, level.lanes), I32)))
            value = b.select(b.icmp_signed("<", index, limit), value, low)
            e.store(place, value)
            return [e.maximum(found[0], value)]

        tops = e.loop(vectors, [e.float_vector(_HIDDEN)], highest)[0]
        top = e.splat(e.call(f"llvm.vector.reduce.fmax.v{level.lanes}f32", F32, tops))

        def power(i: Value, totals: list[Value]) -> list[Value]:
            place = e.at(p, e.times(i, size))
            value = exp(e, b.fsub(e.load_floats(place), top))
            e.store(place, value)
            return [b.fadd(totals[0], value)]

        total = e.reduce_add(e.loop(vectors, [e.float_vector(0.0)], power)[0])
        seen = b.fcmp_ordered(">", b.extract_element(top, I64(0)), F32(_HIDDEN))
        e.store(inverse, b.select(seen, b.fdiv(F32(1.0), total), F32(0.0)))

    return softmax


def make_scatter(level: Level) -> Any:
    """scatter(target, stride, source, count): adjacent floats to places `stride` bytes apart, at least one."""

    @kernel(level, 4)
    def scatter(e: Emitter, target: Value, stride: Value, source: Value, count: Value) -> None:
        def body(i: Value, _: list[Value]) -> list[Value]:
            e.store(e.at(target, e.times(i, stride)), e.load(e.at(source, e.times(i, 4)), F32))
            return []

        e.loop(count, [], body)

    return scatter
