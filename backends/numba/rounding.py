"""The micro-kernel that rounds one group of columns of many rows to 8 bits, after an activation.

Every vector of lanes holds one number of as many rows, so that peaks, scales and sums of codes are found for all of
them at once; a row by itself would spend most of its time on sums across its lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from tersor.backends.numba.elementwise import Activation, apply, gelu_short
from tersor.backends.numba.emitter import F32, I32, I64, Emitter, Value, kernel
from tersor.backends.numba.features import Level, level_named
from tersor.backends.numba.layout import STEP
from tersor.backends.numba.quantiser import CENTER, QMAX


@dataclass(frozen=True)
class RoundSpec:
    """The rounding of activation(y), compiled for a level."""

    level: str
    activation: Activation = "none"

    @property
    def name(self) -> str:
        return f"round_{self.level}_{self.activation}"


def round_work(level: Level, group: int) -> int:
    """Bytes of scratch that the rounding of groups of so many columns needs."""
    return 4 * level.lanes * (group + level.lanes + 4)


def _across(e: Emitter, vectors: list[Value], combine: Callable[[Value, Value], Value]) -> Value:
    """Lane i is the combination of all lanes of vector i: halves of pairs are combined, down to one vector."""
    half = e.level.lanes // 2
    n = e.level.lanes
    while half:
        low = ir.Constant(e.ints, [i if not i & half else n + i - half for i in range(n)])
        high = ir.Constant(e.ints, [i + half if not i & half else n + i for i in range(n)])
        pairs = [(vectors[i], vectors[i + half]) for i in range(half)]
        vectors = [combine(e.b.shuffle_vector(*pair, low), e.b.shuffle_vector(*pair, high)) for pair in pairs]
        half //= 2
    return vectors[0]


class _Rounding:
    """Emits the rounding of `lanes` rows; see `make_round`."""

    def __init__(self, e: Emitter, spec: RoundSpec, arguments: tuple[Value, ...]) -> None:
        self.e, self.spec = e, spec
        self.lanes = e.level.lanes
        self.size = 4 * self.lanes
        self.y, self.y_stride, self.group, self.q, self.q_stride = arguments[:5]
        self.record, self.record_stride, groups, work = arguments[5:]
        self.plane = e.times(groups, 4)
        self.held = work
        self.partial = e.at(work, e.times(self.group, self.size))
        self.found = e.at(self.partial, self.size * self.lanes)

    def function(self, x: Value) -> Value:
        if self.spec.activation == "gelu":
            return gelu_short(self.e, x)
        return apply(self.e, self.spec.activation, x)

    def over_columns(self, start: Value, body: Callable[[Value, Value], Value]) -> Value:
        """Fold body(column, value) over the group in vectors."""

        def step(i: Value, carried: list[Value]) -> list[Value]:
            value = carried[0]
            for offset in range(0, STEP, self.lanes):
                value = body(self.e.at(self.e.times(i, STEP), offset), value)
            return [value]

        return self.e.loop(self.e.b.sdiv(self.group, I64(STEP)), [start], step)[0]

    def over_rows(self, first: Value, count: Value, body: Callable[[Value, Value], None]) -> None:
        """body(lane, row) for the rows from `first` on; what lanes without a row hold does not matter."""

        def step(lane: Value, _: list[Value]) -> list[Value]:
            body(lane, self.e.b.add(first, lane))
            return []

        self.e.loop(count, [], step)

    def across(self, combine: Callable[[Value, Value], Value]) -> Value:
        """A number for every lane from the vectors that the rows left."""
        vectors = [self.e.load_ints(self.e.at(self.partial, lane * self.size)) for lane in range(self.lanes)]
        return _across(self.e, vectors, combine)

    def batch(self, first: Value, count: Value) -> None:
        """Round `count` rows, at most as many as there are lanes."""
        e, b = self.e, self.e.b

        def line(lane: Value) -> Value:
            return e.at(self.held, e.times(b.mul(lane, self.group), 4))

        def activate(lane: Value, row: Value) -> None:
            source, target = e.at(self.y, e.times(self.y_stride, row)), line(lane)

            def one(column: Value, bits: Value) -> Value:
                place = e.times(column, 4)
                value = self.function(e.load_floats(e.at(source, place)))
                e.store(e.at(target, place), value)
                return e.maximum_int(bits, e.absolute_bits(value))

            bits = self.over_columns(e.int_vector(0), one)
            e.store(e.at(self.partial, e.times(lane, self.size)), bits)

        self.over_rows(first, count, activate)
        peaks = b.bitcast(self.across(e.maximum_int), e.floats)
        full, zero = e.float_vector(QMAX), e.float_vector(0.0)
        inverse = b.select(b.fcmp_ordered(">", peaks, zero), b.fdiv(full, peaks), zero)
        scales = b.fdiv(peaks, full)
        e.store(self.found, inverse)

        def codes(lane: Value, row: Value) -> None:
            source, target = line(lane), e.at(self.q, e.times(self.q_stride, row))
            factor = e.broadcast_float(e.at(self.found, e.times(lane, 4)))

            def one(column: Value, counts: Value) -> Value:
                rounded = e.to_int(b.fmul(e.load_floats(e.at(source, e.times(column, 4))), factor))
                e.store(e.at(target, column), b.trunc(rounded, e.narrow))
                return b.add(counts, rounded)

            e.store(e.at(self.partial, e.times(lane, self.size)), self.over_columns(e.int_vector(0), one))

        self.over_rows(first, count, codes)
        counts = self.across(b.add)
        entries = (b.mul(counts, e.int_vector(-CENTER)), scales, b.fmul(scales, e.to_float(counts)))
        for i, entry in enumerate(entries):
            e.store(e.at(self.found, i * self.size), entry)

        def note(lane: Value, row: Value) -> None:
            slot = e.at(self.record, e.times(self.record_stride, row))
            for i, kind in enumerate((I32, F32, F32)):
                value = e.load(e.at(self.found, e.times(lane, 4), i * self.size), kind)
                e.store(e.at(slot, e.times(self.plane, i)), value)

        self.over_rows(first, count, note)


def make_round(spec: RoundSpec) -> Any:
    """round(count, y, y_stride, group, q, q_stride, record, record_stride, groups, work).

    With z[m, j] = activation(y[m, j]) for `count` rows and the `group` columns of one group (a multiple of STEP):

        a[m] = max_j |z[m, j]| / 127,  q[m, j] = z[m, j] / a[m] to the nearest integer, ties to even

    q and `record` are the addresses of the group's first code and of its slot in the first row's record; the record's
    last entry, the total over all `groups`, is not written (`make_total`). GELU is `gelu_short`, within 7.4e-5 |y|; the
    rest as in `make_quantiser`. `work` has `round_work` bytes.
    """
    level = level_named(spec.level)

    @kernel(level, 10)
    def rounded(e: Emitter, count: Value, *arguments: Value) -> None:
        b = e.b
        rounding = _Rounding(e, spec, arguments)

        def body(i: Value, _: list[Value]) -> list[Value]:
            first = e.times(i, level.lanes)
            left = b.sub(count, first)
            full = b.icmp_signed(">", left, I64(level.lanes))
            rounding.batch(first, b.select(full, I64(level.lanes), left))
            return []

        e.loop(b.sdiv(b.add(count, I64(level.lanes - 1)), I64(level.lanes)), [], body)

    return rounded
