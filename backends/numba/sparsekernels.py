"""Micro-kernels of a linear over kept weights only, output by output.

    values  [kept] float32      places  [kept] the column, 16 bits      starts  [output] the first of each; the end

The kept of an output fill whole vectors, at least one: the rest has value 0. One token gathers its inputs; many tokens
lie side by side, a vector of them for every column, and each kept weight is one multiply-add for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from llvmlite import ir

from tersor.backends.numba.emitter import F32, I8, I16, I32, I64, Emitter, Value, kernel
from tersor.backends.numba.features import level_named

_UNROLL = 4  # kept weights at once: their sums hide each other's latency


@dataclass(frozen=True)
class SparseSpec:
    """A step of a sparse linear compiled for a level."""

    level: str
    part: Literal["turn", "one", "many"]

    @property
    def name(self) -> str:
        return f"sparse_{self.level}_{self.part}"


def gather(e: Emitter, base: Value, index: Value) -> Value:
    """The floats at base + 4 index, lane by lane."""
    pointer = e.b.inttoptr(base, I8.as_pointer())
    if e.level.lanes == 16:
        mask = e.constant(ir.VectorType(ir.IntType(1), 16), 1)
        arguments = (e.float_vector(0.0), pointer, index, mask, I32(4))
        return e.call("llvm.x86.avx512.mask.gather.dps.512", e.floats, *arguments)
    if e.level.lanes == 8:
        mask = e.b.bitcast(e.int_vector(-1), e.floats)
        arguments = (e.float_vector(0.0), pointer, index, mask, I8(4))
        return e.call("llvm.x86.avx2.gather.d.ps.256", e.floats, *arguments)
    found = ir.Constant(e.floats, ir.Undefined)
    for lane in range(e.level.lanes):
        place = e.b.zext(e.b.extract_element(index, I32(lane)), I64)
        found = e.b.insert_element(found, e.load(e.at(base, e.times(place, 4)), F32), I32(lane))
    return found


def make_dot(spec: SparseSpec) -> Any:
    """dot(y, x, values, places, count, bias): y = bias + sum of value * x[place], floats; `count` at least 1, in whole
    vectors.
    """
    level = level_named(spec.level)
    lanes = level.lanes

    @kernel(level, 6)
    def dot(e: Emitter, y: Value, x: Value, values: Value, places: Value, count: Value, bias: Value) -> None:
        def body(i: Value, sums: list[Value]) -> list[Value]:
            index = e.b.zext(e.load(e.at(places, e.times(i, 2 * lanes)), ir.VectorType(I16, lanes)), e.ints)
            return [e.fma(e.load_floats(e.at(values, e.times(i, 4 * lanes))), gather(e, x, index), sums[0])]

        total = e.reduce_add(e.loop(e.b.sdiv(count, I64(lanes)), [e.float_vector(0.0)], body)[0])
        e.store(y, e.b.fadd(total, e.load(bias, F32)))

    return dot


def make_accumulate(spec: SparseSpec) -> Any:
    """accumulate(y, x, values, places, count, bias): a vector of tokens, y = bias + sum of value * x[place], where x
    has a vector for each column; `count` at least 1, in whole vectors.
    """
    level = level_named(spec.level)
    size = 4 * level.lanes

    @kernel(level, 6)
    def accumulate(e: Emitter, y: Value, x: Value, values: Value, places: Value, count: Value, bias: Value) -> None:
        def body(i: Value, sums: list[Value]) -> list[Value]:
            new = []
            for u, total in enumerate(sums):
                place = e.b.zext(e.load(e.at(places, e.times(i, 2 * _UNROLL), 2 * u), I16), I64)
                value = e.broadcast_float(e.at(values, e.times(i, 4 * _UNROLL), 4 * u))
                new.append(e.fma(e.load_floats(e.at(x, e.times(place, size))), value, total))
            return new

        start = [e.broadcast_float(bias)] + [e.float_vector(0.0)] * (_UNROLL - 1)
        sums = e.loop(e.b.sdiv(count, I64(_UNROLL)), start, body)
        while len(sums) > 1:
            sums = [e.b.fadd(a, b) for a, b in zip(sums[::2], sums[1::2], strict=True)]
        e.store(y, sums[0])

    return accumulate


def make_turn(spec: SparseSpec) -> Any:
    """turn(y, y_stride, x, x_stride): the transpose of a square of `lanes` floats a side."""
    level = level_named(spec.level)

    @kernel(level, 4)
    def turn(e: Emitter, y: Value, y_stride: Value, x: Value, x_stride: Value) -> None:
        rows = [e.load_floats(e.at(x, e.times(x_stride, i))) for i in range(level.lanes)]
        for i, row in enumerate(e.transpose(rows)):
            e.store(e.at(y, e.times(y_stride, i)), row)

    return turn
