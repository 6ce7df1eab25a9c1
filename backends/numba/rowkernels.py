"""The micro-kernel that normalises one row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from tersor.backends.numba.emitter import F32, I64, Emitter, Value, kernel
from tersor.backends.numba.features import level_named


@dataclass(frozen=True)
class NormSpec:
    """A layer normalisation compiled for a level; with `root` one by the root mean square."""

    level: str
    root: bool = False

    @property
    def name(self) -> str:
        return f"{'rootnorm' if self.root else 'norm'}_{self.level}"


def make_norm(spec: NormSpec) -> Any:
    """normalise(x, other, add, weight, bias, z, y, vectors, columns, epsilon): one row of z = x + other if there is one
    to `add`; else of z = x, which is not written.

        y = (z - mean) / sqrt(mean (z - mean)^2 + epsilon) * weight + bias
        y = z / sqrt(mean z^2 + epsilon) * weight                             with `root`

    z may be x or y.
    """
    level = level_named(spec.level)
    size = 4 * level.lanes

    @kernel(level, 9, arguments_after=("float32",))
    def normalise(
        e: Emitter,
        x: Value,
        other: Value,
        add: Value,
        weight: Value,
        bias: Value,
        z: Value,
        y: Value,
        vectors: Value,
        columns: Value,
        epsilon: Value,
    ) -> None:
        b = e.b
        zeros = [e.float_vector(0.0)]

        def counted(value: Value, found: Value) -> Value:
            return e.fma(value, value, found) if spec.root else b.fadd(found, value)

        plain, adding, summed = (b.append_basic_block(name) for name in ("plain", "adding", "summed"))
        b.cbranch(b.icmp_signed("!=", add, I64(0)), adding, plain)
        totals = []
        for block, with_other in ((adding, True), (plain, False)):
            b.position_at_end(block)

            def total(i: Value, found: list[Value], with_other: bool = with_other) -> list[Value]:
                offset = e.times(i, size)
                value = e.load_floats(e.at(x, offset))
                if with_other:
                    value = b.fadd(value, e.load_floats(e.at(other, offset)))
                    e.store(e.at(z, offset), value)
                return [counted(value, found[0])]

            totals.append((e.loop(vectors, zeros, total)[0], z if with_other else x, b.block))
            b.branch(summed)
        b.position_at_end(summed)
        sums, source = b.phi(e.floats), b.phi(I64)
        for value, place, block in totals:
            sums.add_incoming(value, block)
            source.add_incoming(place, block)
        count = b.sitofp(columns, F32)
        first = b.fdiv(e.reduce_add(sums), count)

        def centred(i: Value) -> Value:
            value = e.load_floats(e.at(source, e.times(i, size)))
            return value if spec.root else b.fsub(value, mean)

        if spec.root:
            variance = first
        else:
            mean = e.splat(first)

            def squares(i: Value, found: list[Value]) -> list[Value]:
                value = centred(i)
                return [e.fma(value, value, found[0])]

            variance = b.fdiv(e.reduce_add(e.loop(vectors, zeros, squares)[0]), count)
        deviation = e.call("llvm.sqrt.f32", F32, b.fadd(variance, epsilon))
        factor = e.splat(b.fdiv(ir.Constant(F32, 1.0), deviation))

        def scale(i: Value, _: list[Value]) -> list[Value]:
            offset = e.times(i, size)
            value, gain = b.fmul(centred(i), factor), e.load_floats(e.at(weight, offset))
            if spec.root:
                value = b.fmul(value, gain)
            else:
                value = e.fma(value, gain, e.load_floats(e.at(bias, offset)))
            e.store(e.at(y, offset), value)
            return []

        e.loop(vectors, [], scale)

    return normalise
