"""The micro-kernel that rounds a row of activations to 8 bits, and the record it leaves for the tiles (see
`microkernels`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tersor.backends.numba.emitter import F32, I32, I64, Emitter, Value, kernel
from tersor.backends.numba.features import Level

QMAX = 127.0
CENTER = 128
"""What a record takes from codes of 8 bits, of which those of fewer take so many bits less."""


@dataclass(frozen=True)
class QuantiseSpec:
    """The rounding of activations compiled for a level."""

    level: str

    @property
    def name(self) -> str:
        return f"quantise_{self.level}"


def record_bytes(groups: int) -> int:
    """Size of a row's record."""
    return 12 * groups + 4


_UNROLLED = (64, 32)  # groups whose values stay in registers between finding their peak and rounding


class _Quantiser:
    """Emits the rounding of one row; see `make_quantiser`."""

    def __init__(self, e: Emitter, x: Value, q: Value, record: Value, groups: Value) -> None:
        self.e, self.x, self.q, self.record = e, x, q, record
        self.lanes = e.level.lanes
        self.plane = e.times(groups, 4)

    def scales(self, bits: Value) -> tuple[Value, Value]:
        """(scale, its inverse in every lane) for a vector of |x| bits."""
        e, b = self.e, self.e.b
        peak = b.bitcast(e.reduce_maximum_int(bits), F32)
        inverse = b.select(b.fcmp_ordered(">", peak, F32(0.0)), b.fdiv(F32(QMAX), peak), F32(0.0))
        return b.fdiv(peak, F32(QMAX)), e.splat(inverse)

    def round(self, value: Value, factor: Value, place: Value) -> Value:
        """Store value * factor rounded to bytes at q + place; the rounded integers."""
        e = self.e
        rounded = e.to_int(e.b.fmul(value, factor))
        e.store(e.at(self.q, place), e.b.trunc(rounded, e.narrow))
        return rounded

    def note(self, index: Value, scale: Value, counts: Value) -> Value:
        """Write the record of group `index`; scale * sum of q."""
        e, b = self.e, self.e.b
        count = e.reduce_add_int(counts)
        slot = e.at(self.record, e.times(index, 4))
        weighted = b.fmul(scale, b.sitofp(count, F32))
        e.store(slot, b.mul(count, I32(-CENTER)))
        e.store(e.at(slot, self.plane), scale)
        e.store(e.at(slot, self.plane, self.plane), weighted)
        return weighted

    def unrolled(self, group: int, groups: Value) -> Value:
        """A scale per group of a fixed size; the total of scale * sum of q."""
        e, b = self.e, self.e.b

        def body(g: Value, total: list[Value]) -> list[Value]:
            start = e.times(g, group)
            offsets = range(0, group, self.lanes)
            values = [e.load_floats(e.at(self.x, e.times(start, 4), 4 * offset)) for offset in offsets]
            bits = e.int_vector(0)
            for value in values:
                bits = e.maximum_int(bits, e.absolute_bits(value))
            scale, factor = self.scales(bits)
            counts = e.int_vector(0)
            for value, offset in zip(values, offsets, strict=True):
                counts = b.add(counts, self.round(value, factor, e.at(start, offset)))
            return [b.fadd(total[0], self.note(g, scale, counts))]

        return e.loop(groups, [F32(0.0)], body)[0]

    def looped(self, spans: Value, per_span: Value, group: Value) -> Value:
        """A scale per span of any number of groups of any size; the total of scale * sum of q."""
        e, b = self.e, self.e.b
        vectors = b.sdiv(group, I64(self.lanes))

        def span_body(span: Value, carried: list[Value]) -> list[Value]:
            first = b.mul(span, per_span)
            start = b.mul(first, group)

            def largest(i: Value, found: list[Value]) -> list[Value]:
                address = e.at(self.x, e.times(start, 4), e.times(i, 4 * self.lanes))
                return [e.maximum_int(found[0], e.absolute_bits(e.load_floats(address)))]

            scale, factor = self.scales(e.loop(b.mul(vectors, per_span), [e.int_vector(0)], largest)[0])

            def group_body(g: Value, total: list[Value]) -> list[Value]:
                index = b.add(first, g)
                offset = b.mul(index, group)

                def round_vector(i: Value, counts: list[Value]) -> list[Value]:
                    place = b.add(offset, e.times(i, self.lanes))
                    value = e.load_floats(e.at(self.x, e.times(place, 4)))
                    return [b.add(counts[0], self.round(value, factor, place))]

                counts = e.loop(vectors, [e.int_vector(0)], round_vector)[0]
                return [b.fadd(total[0], self.note(index, scale, counts))]

            return e.loop(per_span, carried, group_body)

        return e.loop(spans, [F32(0.0)], span_body)[0]


def make_quantiser(level: Level) -> Any:
    """quantise(x, q, record, spans, groups_per_span, group): one row of `spans * groups_per_span * group`
    floats.

    A span has one scale, max |x| / 127. A span of zeros gets scale 0; NaN or infinity make the scale, and so the
    output, NaN or infinite.
    """

    @kernel(level, 6)
    def quantise(e: Emitter, x: Value, q: Value, record: Value, spans: Value, per_span: Value, group: Value) -> None:
        b = e.b
        quantiser = _Quantiser(e, x, q, record, b.mul(spans, per_span))
        done = b.append_basic_block("quantised")
        totals = []
        for size in _UNROLLED:
            here, other = b.append_basic_block(f"group{size}"), b.append_basic_block("other")
            b.cbranch(b.and_(b.icmp_signed("==", group, I64(size)), b.icmp_signed("==", per_span, I64(1))), here, other)
            b.position_at_end(here)
            totals.append((quantiser.unrolled(size, spans), b.block))
            b.branch(done)
            b.position_at_end(other)
        totals.append((quantiser.looped(spans, per_span, group), b.block))
        b.branch(done)
        b.position_at_end(done)
        total = b.phi(F32)
        for value, block in totals:
            total.add_incoming(value, block)
        e.store(e.at(record, e.times(quantiser.plane, 3)), total)

    return quantise


def make_total(level: Level) -> Any:
    """total(record, groups): write the record's last entry, the sum over groups of scale * sum of q."""

    @kernel(level, 2)
    def total(e: Emitter, record: Value, groups: Value) -> None:
        plane = e.times(groups, 4)
        weighted = e.at(record, plane, plane)

        def add(g: Value, sums: list[Value]) -> list[Value]:
            return [e.b.fadd(sums[0], e.load(e.at(weighted, e.times(g, 4)), F32))]

        e.store(e.at(weighted, plane), e.loop(groups, [F32(0.0)], add)[0])

    return total
