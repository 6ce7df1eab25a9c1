"""A register tile: a few rows of 8-bit activations times one panel of codes, summed in integers."""

from __future__ import annotations

from dataclasses import dataclass

from tersor.backends.numba.emitter import Emitter, Value
from tersor.backends.numba.features import Level
from tersor.backends.numba.layout import STEP
from tersor.backends.numba.quantiser import QMAX

Key = tuple[int, int, int]
"""Of a sum: row, strip, plane."""

LINE = 64  # bytes of a cache line
_PAGE = 4096  # bytes that a single row asks for ahead: what the processor fetches by itself ends with the page


def unpacked(e: Emitter, vector: Value, width: int, in_place: bool = False, levels: Value | None = None) -> list[Value]:
    """The `8 // width` vectors of unsigned bytes in one packed vector; `in_place` leaves plane i multiplied by
    2^(width * i). With `levels` (16 bytes, repeated) every code becomes its level.
    """
    if levels is not None:
        return [e.look_up(levels, codes) for codes in unpacked(e, vector, width)]
    if width == 8:
        return [vector]
    mask = (1 << width) - 1
    if in_place:
        return [e.b.and_(vector, e.byte_mask(mask << shift)) for shift in range(0, 8, width)]
    return [e.b.and_(e.shift_right(vector, shift), e.byte_mask(mask)) for shift in range(0, 8, width)]


@dataclass(frozen=True)
class Ahead:
    """Memory that will be read after this: a tile asks for a line of it, then for that `stride` bytes further, and so
    on, `Tile.asked` times in every step of STEP columns.
    """

    place: Value
    stride: Value


def dots_in_short(level: Level, bits: int) -> int:
    """How many dot products of two codes below 2^bits with activations of 8 bits may be summed in 16 bits on a level
    without a dot product of four bytes; 0 where sums are of 32 bits from the start.
    """
    most = 2 * int(QMAX) * ((1 << bits) - 1)
    return ((1 << 15) - 1) // most if level.in_pairs else 0


def spread(level: Level) -> bool:
    """Whether a tile asks for memory among its products. With 16 registers some sums would be held in memory then, so
    that it asks after them."""
    return level.lanes == 16


class Sums:
    """Integer sums by key, to which products of four codes with four activations are added; `room` of them in 16 bits
    first, if any. Activations are signed and codes are not, or the other way round where codes are `signed`.
    """

    def __init__(self, e: Emitter, room: int, sums: dict[Key, Value], signed: bool = False) -> None:
        self.e, self.room, self.sums, self.signed = e, room, sums, signed
        self.shorts: dict[Key, tuple[Value, int]] = {}

    def add(self, key: Key, codes: Value, four: Value) -> None:
        e = self.e
        if not self.room:
            self.sums[key] = e.dot(self.sums[key], codes, four)
            return
        short, count = e.dot_short(four, codes) if self.signed else e.dot_short(codes, four), 1
        if key in self.shorts:
            before, held = self.shorts[key]
            short, count = e.b.add(before, short), held + 1
        self.shorts[key] = short, count
        if count == self.room:
            self._widen(key)

    def _widen(self, key: Key) -> None:
        short, _ = self.shorts.pop(key)
        self.sums[key] = self.e.settled(self.e.add_shorts(self.sums[key], short))

    def found(self) -> list[Value]:
        """All sums, in the order in which they were given."""
        for key in list(self.shorts):
            self._widen(key)
        return list(self.sums.values())


class Tile:
    """Emits `rows` activation rows times one panel of numbers below 2^bits: codes laid out in `width` bits, or
    their `levels` where those are given. `resident` codes need not be fetched from memory; `asked` lines are asked for
    ahead in every STEP columns. Several `panels`, whose codes lie `apart`, may be taken at once. With `room` the codes
    are signed bytes and the activations are not, and so many products in a row fit 16 bits.
    """

    def __init__(
        self,
        e: Emitter,
        bits: int,
        width: int,
        rows: int,
        levels: Value | None = None,
        resident: bool = False,
        asked: int = 0,
        room: int = 0,
        panels: int = 1,
        apart: Value | int = 0,
    ) -> None:
        self.e, self.width, self.rows, self.levels = e, width, rows, levels
        self.shorts, self.signed = room or dots_in_short(e.level, bits), room > 0
        self.apart = apart
        self.strips = panels * e.level.strips
        self.vector = 4 * e.level.lanes  # bytes
        self.per = 8 // width
        # One row leaves registers free: several accumulators an output hide the latency of the dot product, and packed
        # codes need no shift when each plane has its own. Shorts hide it too, and have no room for codes not shifted.
        self.planes = (self.per if self.per > 1 else 2) if rows == 1 and not self.shorts else 1
        self.in_place = self.planes > 1 and self.per > 1 and levels is None
        # Many rows have no registers for sums that wait in 16 bits for the next columns: two products of a row are
        # added and widened before the next row's.
        self.paired = self.per == 1 and self.shorts > 1 and (rows > 2 or (self.signed and panels == 1))
        if self.paired:
            self.shorts = 2
        self.outputs = [(m, v) for m in range(rows) for v in range(self.strips)]
        self.asked = asked
        self.spread = spread(e.level)
        # A single row waits for memory, and asks for its own codes; more rows have the time in which to fetch others.
        self.fetching = rows == 1 and not resident
        self.step_bytes = STEP // (4 * self.per) * e.level.strips * self.vector  # of a panel's codes, for STEP columns

    def ask(self, place: Value, stride: Value, lines: int) -> Value:
        """Ask for so many lines from `place` on; the place after them."""
        for _ in range(lines):
            self.e.prefetch(place)
            place = self.e.at(place, stride)
        return place

    def across(self, place: Value, apart: Value | int) -> list[Value]:
        """The addresses of a vector of every strip, the first at `place`; those of a panel lie together, and panels lie
        `apart`.
        """
        e = self.e
        return [
            e.at(place, e.times(apart, panel) if panel else 0, strip * self.vector)
            for panel, strip in (divmod(v, e.level.strips) for v in range(self.strips))
        ]

    def quads(self, place: Value, count: int) -> list[list[Value]]:
        """The codes at `place` of so many quads of columns, each a vector a strip."""
        e, quads = self.e, []
        for t in range(count // self.per):
            first = e.at(place, t * e.level.strips * self.vector)
            vectors = [e.load_ints(address) for address in self.across(first, self.apart)]
            codes = [unpacked(e, vector, self.width, self.in_place, self.levels) for vector in vectors]
            quads += [list(quad) for quad in zip(*codes, strict=True)]
        return quads

    def accumulate(
        self, starts: list[Value], q: list[Value], w: Value, steps: Value, ahead: Ahead
    ) -> tuple[list[Value], Ahead]:
        """Integer sums over `steps * STEP` columns, from `starts` (one vector an output), and what is ahead then."""
        e = self.e
        zero = e.int_vector(0)
        keys = [(m, v, p) for m, v in self.outputs for p in range(self.planes)]
        together = 2 if self.paired else self.per  # quads of columns
        turns = STEP // (4 * together)
        bytes_taken = self.step_bytes // turns
        order = [(part, m) for part in range(together) for m in range(self.rows)]
        if self.paired:
            order.sort(key=lambda product: product[1])

        def body(i: Value, carried: list[Value]) -> list[Value]:
            *values, place = carried
            weights = e.at(w, e.times(i, self.step_bytes))
            inputs = [e.at(row, e.times(i, STEP)) for row in q]
            sums = Sums(e, self.shorts, dict(zip(keys, values, strict=True)), self.signed)
            for t in range(turns):
                if self.spread:
                    due = (t + 1) * self.asked // turns - t * self.asked // turns
                    place = self.ask(place, ahead.stride, due)
                here = e.at(weights, t * bytes_taken)
                if self.fetching:
                    for offset in range(0, bytes_taken, LINE):
                        e.prefetch(e.at(here, offset + _PAGE), nearest=True)
                codes = self.quads(here, together)
                for part, m in order:
                    plane = (part if self.in_place else t) % self.planes
                    four = e.broadcast_int(e.at(inputs[m], 4 * (t * together + part)))
                    for v in range(self.strips):
                        sums.add((m, v, plane), codes[part][v], four)
            place = self.ask(place, ahead.stride, 0 if self.spread else self.asked)
            return [*sums.found(), place]

        # With planes left in place the start joins the unshifted plane.
        first = dict(zip(self.outputs, starts, strict=True))
        begun = [first[m, v] if p == 0 else zero for m, v, p in keys]
        *carried, place = e.loop(steps, [*begun, ahead.place], body)
        sums = dict(zip(keys, carried, strict=True))
        result = []
        for m, v in self.outputs:
            total = sums[m, v, 0]
            for p in range(1, self.planes):
                plane = sums[m, v, p]
                if self.in_place:
                    plane = e.b.ashr(plane, e.int_vector(self.width * p))
                total = e.b.add(total, plane)
            result.append(total)
        return result, Ahead(place, ahead.stride)


def emit_expand(e: Emitter, target: Value, w: Value, width: int, steps: Value, levels: Value | None) -> None:
    """Codes of `width` bits, or their levels, for `steps * STEP` columns of a panel become bytes at `target`, in the
    same order of columns.
    """
    tile = Tile(e, width, width, 1)
    strips, vector, per = tile.strips, tile.vector, tile.per

    def body(i: Value, _: list[Value]) -> list[Value]:
        source = e.at(w, e.times(i, tile.step_bytes))
        here = e.at(target, e.times(i, tile.step_bytes * per))
        for t in range(STEP // (4 * per)):
            for v in range(strips):
                packed = e.load_ints(e.at(source, (t * strips + v) * vector))
                for part, codes in enumerate(unpacked(e, packed, width, levels=levels)):
                    e.store(e.at(here, ((t * per + part) * strips + v) * vector), codes)
        return []

    e.loop(steps, [], body)
