"""Micro-kernels that work on one row: expand packed codes, and normalise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types

from tersor.backends.numba.emitter import F32, I64, Emitter, Value, kernel
from tersor.backends.numba.features import level_named
from tersor.backends.numba.layout import STEP


@dataclass(frozen=True)
class EmbeddingSpec:
    """An embedding whose rows lie in codes of `width` bits (4 or 8)."""

    level: str
    width: int

    @property
    def name(self) -> str:
        return f"embedding_{self.level}_{self.width}"


@dataclass(frozen=True)
class NormSpec:
    """A layer normalisation compiled for a level."""

    level: str

    @property
    def name(self) -> str:
        return f"norm_{self.level}"


def make_expand(spec: EmbeddingSpec) -> Any:
    """expand(y, codes, scale, zero, columns): y = scale * (code - zero) for a group; `columns` is a multiple of STEP.

    In 4 bits, STEP codes lie in STEP / 2 bytes: the first half in the low bits, the second in the high bits.
    """
    level = level_named(spec.level)
    lanes = level.lanes

    @kernel(level, 5)
    def expand(e: Emitter, y: Value, codes: Value, scale: Value, zero: Value, columns: Value) -> None:
        b = e.b
        factor, origin = e.broadcast_float(scale), e.broadcast_float(zero)

        def body(i: Value, _: list[Value]) -> list[Value]:
            source = e.at(codes, e.times(i, STEP * spec.width // 8))
            target = e.at(y, e.times(i, 4 * STEP))
            stored = STEP * spec.width // 8
            for first in range(0, stored, lanes):
                packed = b.zext(e.load(e.at(source, first), e.narrow), e.ints)
                planes = [packed] if spec.width == 8 else [b.and_(packed, e.int_vector(15)), e.shift_right(packed, 4)]
                for p, plane in enumerate(planes):
                    value = b.fmul(b.fsub(e.to_float(plane), origin), factor)
                    e.store(e.at(target, 4 * (first + p * stored)), value)
            return []

        e.loop(b.sdiv(columns, I64(STEP)), [], body)

    return expand


def make_norm(spec: NormSpec) -> Any:
    """normalise(x, other, add, weight, bias, y, vectors, columns, epsilon): one row, variance from the centred values.

    y holds x + other in between, so it must not be `weight` or `bias`; it may be x.
    """
    level = level_named(spec.level)
    size = 4 * level.lanes

    @kernel(level, 8, arguments_after=(types.float32,))
    def normalise(
        e: Emitter,
        x: Value,
        other: Value,
        add: Value,
        weight: Value,
        bias: Value,
        y: Value,
        vectors: Value,
        columns: Value,
        epsilon: Value,
    ) -> None:
        b = e.b
        plain, adding, summed = (b.append_basic_block(name) for name in ("plain", "adding", "summed"))
        b.cbranch(b.icmp_signed("!=", add, I64(0)), adding, plain)
        totals = []
        for block, with_other in ((adding, True), (plain, False)):
            b.position_at_end(block)

            def total(i: Value, sums: list[Value], with_other: bool = with_other) -> list[Value]:
                offset = e.times(i, size)
                z = e.load_floats(e.at(x, offset))
                if with_other:
                    z = b.fadd(z, e.load_floats(e.at(other, offset)))
                e.store(e.at(y, offset), z)
                return [b.fadd(sums[0], z)]

            totals.append((e.loop(vectors, [e.float_vector(0.0)], total)[0], b.block))
            b.branch(summed)
        b.position_at_end(summed)
        sums = b.phi(e.floats)
        for value, block in totals:
            sums.add_incoming(value, block)
        count = b.sitofp(columns, F32)
        mean = e.splat(b.fdiv(e.reduce_add(sums), count))

        def squares(i: Value, found: list[Value]) -> list[Value]:
            z = b.fsub(e.load_floats(e.at(y, e.times(i, size))), mean)
            return [e.fma(z, z, found[0])]

        variance = b.fdiv(e.reduce_add(e.loop(vectors, [e.float_vector(0.0)], squares)[0]), count)
        deviation = e.call("llvm.sqrt.f32", F32, b.fadd(variance, epsilon))
        factor = e.splat(b.fdiv(ir.Constant(F32, 1.0), deviation))

        def scale(i: Value, _: list[Value]) -> list[Value]:
            offset = e.times(i, size)
            z = b.fmul(b.fsub(e.load_floats(e.at(y, offset)), mean), factor)
            e.store(e.at(y, offset), e.fma(z, e.load_floats(e.at(weight, offset)), e.load_floats(e.at(bias, offset))))
            return []

        e.loop(vectors, [], scale)

    return normalise
