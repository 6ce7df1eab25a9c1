"""The micro-kernel that normalises one row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from tersor.backends.numba.emitter import F32, I64, Emitter, Value, kernel
from tersor.backends.numba.features import level_named


@dataclass(frozen=True)
class NormSpec:
    """A layer normalisation compiled for a level."""

    level: str

    @property
    def name(self) -> str:
        return f"norm_{self.level}"


def make_norm(spec: NormSpec) -> Any:
    """normalise(x, other, add, weight, bias, y, vectors, columns, epsilon): one row, variance from the centred values.

    y holds x + other in between, so it must not be `weight` or `bias`; it may be x.
    """
    level = level_named(spec.level)
    size = 4 * level.lanes

    @kernel(level, 8, arguments_after=("float32",))
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
