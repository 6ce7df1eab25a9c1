"""The micro-kernel of a quantised linear: rows of activations times one panel of weights.

With activations x[m, k] ~ a[m, g] * q[m, k], q in -127..127, and weights w[n, k] = s[n, g] * (code[n, k] - center) +
shift[n, g]:

    y[m, n] = bias[n] + sum_g a[m, g] * (s[n, g] * sum_k (code - center) q + shift[n, g] * sum_k q)

The integer sum starts from -center * sum_k q, so that the unsigned codes go into the dot product as they are. Each row
carries a record, written by the quantiser: -128 * sum_k q int32[groups], which a shift makes that of codes of fewer
bits, `a` float[groups], `a * sum_k q` float[groups] and the total of the latter.

Where `room` products of these very codes fit 16 bits (see `compiler.stores.sums`), the codes are kept signed, code -
center, the kernel is given u = q + 128 for q, and the integer sum starts from -128 * sum_k (code - center), which lies
in the place of the shift.

Codes may be looked up in 16 unsigned levels, whose address stands for that of the shift and whose center is that of 8
bits. Many rows share packed codes that were expanded to bytes once; up to `packed_rows` unpack them in registers. A
float result is the same whatever the tile: groups ascend, and each adds once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tersor.backends.numba.emitter import I64, Emitter, Value, kernel
from tersor.backends.numba.features import Level, level_named
from tersor.backends.numba.layout import STEP, Kind, Layout, width_of
from tersor.backends.numba.tiles import LINE, Ahead, Tile, dots_in_short, emit_expand, spread

_UNPACKING = {16: 4, 8: 2, 4: 2}  # rows of a tile that still leave registers to unpack in, by lanes
_ASKED = 16  # cache lines that a tile asks for ahead in STEP columns, among its products


@dataclass(frozen=True)
class LinearSpec:
    """What a compiled linear is specialised on; rows, columns and group sizes are known at run time only. `resident`:
    its codes are in the caches already.
    """

    level: str
    bits: int
    kind: Kind
    shifted: bool
    looked_up: bool = False
    resident: bool = False
    room: int = 0

    @property
    def width(self) -> int:
        """Bits in which a code is laid out."""
        return width_of(self.bits)

    @property
    def multiplied(self) -> int:
        """Bits of what is multiplied: of a code, or of its level."""
        return 8 if self.looked_up else self.bits

    @property
    def name(self) -> str:
        more = "_shifted" if self.shifted else "_levels" if self.looked_up else f"_room{self.room}" if self.room else ""
        return f"linear_{self.level}_{self.bits}_{self.kind}{more}{'_resident' if self.resident else ''}"


def packed_rows(level: Level, width: int, looked_up: bool = False) -> int:
    """Up to so many rows it is faster to unpack codes of `width` bits for every tile than to expand them once."""
    if width == 4 and not looked_up:
        return 8 if level.in_pairs else 24  # few instructions a product: unpacking counts for more
    return {2: 12, 4: 12, 8: 0}[width]


def panel_work(level: Level, layout: Layout) -> int:
    """Bytes of scratch that the panel kernel of a layout needs."""
    return 0 if layout.width == 8 else level.panel * layout.padded


class _Panel:
    """Emits all rows times one panel, or one row times several `panels` at once; see `make_panel` and `make_row`."""

    def __init__(self, e: Emitter, spec: LinearSpec, arguments: tuple[Value, ...], panels: int = 1) -> None:
        self.e, self.spec, self.panels = e, spec, panels
        self.vector = 4 * e.level.lanes
        self.q, self.q_stride, self.record, self.record_stride, self.w, self.scale, self.shift = arguments[:7]
        self.bias, self.y, self.y_stride, self.steps, self.groups, self.work, self.next = arguments[7:]
        self.plane = e.times(self.groups, 4)
        self.levels = e.load_ints(self.shift) if spec.looked_up else None
        self.sizes = e.level.row_tiles if spec.kind == "row" else e.level.group_tiles
        if spec.kind == "activation" and (spec.room or dots_in_short(e.level, spec.multiplied)):
            self.sizes = e.level.short_tiles
        # From one panel to the next.
        self.codes_apart = e.times(e.times(self.groups, self.steps), e.level.panel * STEP * spec.width // 8)
        line = 4 * e.level.panel
        every_group = e.times(self.groups, line)
        self.scales_apart = every_group if spec.kind == "group" else I64(line)
        self.shifts_apart = every_group if spec.room else I64(0) if spec.looked_up else self.scales_apart

    def move(self, panels: Value) -> None:
        """Go so many panels further."""
        e = self.e
        self.w = e.at(self.w, e.times(panels, self.codes_apart))
        self.scale = e.at(self.scale, e.times(panels, self.scales_apart))
        self.shift = e.at(self.shift, e.times(panels, self.shifts_apart))
        line = e.times(panels, 4 * e.level.panel)
        self.bias, self.y = e.at(self.bias, line), e.at(self.y, line)

    def emit(self, count: Value) -> None:
        e, b = self.e, self.e.b
        all_steps = b.mul(self.groups, self.steps)
        self.step_bytes = e.quotient(I64(e.level.panel * STEP * self.spec.width // 8), count)
        self.row_bytes = b.mul(self.step_bytes, all_steps)
        if self.spec.width == 8:
            self.tiles(count)
            return

        def few() -> None:
            width, levels = self.spec.width, self.levels
            sizes = [rows for rows in self.sizes if rows <= _UNPACKING[e.level.lanes]]
            e.ladder(count, sizes, lambda m, rows: self.tile(self.sized(rows, width, levels), m, self.w))

        def many() -> None:
            emit_expand(e, self.work, self.w, self.spec.width, b.mul(self.groups, self.steps), self.levels)
            self.tiles(count)

        least = packed_rows(e.level, self.spec.width, self.spec.looked_up)
        e.branch(b.icmp_signed("<=", count, I64(least)), few, many)

    def tiles(self, count: Value) -> None:
        """All rows times codes of one byte."""
        codes = self.w if self.spec.width == 8 else self.work
        self.e.ladder(count, self.sizes, lambda m, rows: self.tile(self.sized(rows, 8), m, codes))

    def sized(self, rows: int, width: int, levels: Value | None = None) -> Tile:
        level = self.e.level
        lines = level.panel * STEP * self.spec.width // (8 * LINE)  # of a panel, in STEP columns
        asked = 0 if rows == 1 else _ASKED if spread(level) else lines // 2
        return Tile(
            self.e, self.spec.multiplied, width, rows, levels, self.spec.resident, asked, self.spec.room, self.panels,
            self.codes_apart,
        )  # fmt: skip

    def tile(self, t: Tile, row: Value, codes: Value) -> None:
        """The rows of a tile from `row` on."""
        e = self.e
        at_row = [e.b.add(row, I64(m)) for m in range(t.rows)]
        q = [e.opaque(e.at(self.q, e.times(self.q_stride, m))) for m in at_row]
        records = [e.at(self.record, e.times(self.record_stride, m)) for m in at_row]
        y = [e.at(self.y, e.times(self.y_stride, m)) for m in at_row]
        ahead = Ahead(I64(0), I64(0))
        if t.asked:
            stride = e.b.sdiv(e.times(self.step_bytes, t.rows), I64(t.asked))
            ahead = Ahead(e.at(self.next, e.times(self.row_bytes, row)), stride)
        if self.spec.kind == "row":
            starts = self.starts(t, records, self.shift)
            sums, _ = t.accumulate(starts, q, codes, self.steps, ahead)
        else:
            sums = self.over_groups(t, q, records, codes, ahead)
        for (m, v), value in zip(t.outputs, self.finished(t, records, sums), strict=True):
            e.store(e.at(y[m], v * self.vector), value)

    def starts(self, t: Tile, slots: list[Value], place: Value) -> list[Value]:
        """What the sums of a group start from: -center * sum of q, whose records are at `slots`, or what was kept at
        `place` for codes that are signed.
        """
        if self.spec.room:
            kept = [self.e.load_ints(address) for address in t.across(place, self.shifts_apart)]
            return [kept[v] for _, v in t.outputs]
        bits = self.e.int_vector(8 - self.spec.multiplied)
        return [start for slot in slots for start in [self.e.b.ashr(self.e.broadcast_int(slot), bits)] * t.strips]

    def over_groups(self, t: Tile, q: list[Value], records: list[Value], codes: Value, ahead: Ahead) -> list[Value]:
        """The floating sums after all groups."""
        e = self.e
        group_bytes = e.times(self.steps, t.step_bytes)
        group_columns = e.times(self.steps, STEP)
        add = self.add_activation if self.spec.kind == "activation" else self.add_group

        def body(g: Value, carried: list[Value]) -> list[Value]:
            *sums, place = carried
            slots = [e.at(r, e.times(g, 4)) for r in records]
            columns, offset = e.b.mul(g, group_columns), e.b.mul(g, group_bytes)
            first = self.starts(t, slots, e.at(self.shift, e.times(g, 4 * e.level.panel)))
            rows = [e.at(row, columns) for row in q]
            here = Ahead(place, ahead.stride)
            integers, left = t.accumulate(first, rows, e.at(codes, offset), self.steps, here)
            return [*add(t, g, slots, [e.to_float(value) for value in integers], sums), left.place]

        return e.loop(self.groups, [*[e.float_vector(0.0)] * len(t.outputs), ahead.place], body)[:-1]

    def add_activation(
        self, t: Tile, g: Value, slots: list[Value], values: list[Value], sums: list[Value]
    ) -> list[Value]:
        """One scale per weight row, one per group of activations."""
        e = self.e
        factors = [e.broadcast_float(e.at(slot, self.plane)) for slot in slots]
        return [e.fma(value, factors[m], s) for (m, _), value, s in zip(t.outputs, values, sums, strict=True)]

    def add_group(self, t: Tile, g: Value, slots: list[Value], values: list[Value], sums: list[Value]) -> list[Value]:
        """One scale per group of weights and per group of activations (a row-wise activation scale is repeated)."""
        e = self.e
        line = e.times(g, 4 * e.level.panel)
        scales = self.vectors(t, e.at(self.scale, line), self.scales_apart)
        factors = [e.broadcast_float(e.at(slot, self.plane)) for slot in slots]
        new = [
            e.fma(e.b.fmul(value, factors[m]), scales[v], s)
            for (m, v), value, s in zip(t.outputs, values, sums, strict=True)
        ]
        if self.spec.shifted:
            shifts = self.vectors(t, e.at(self.shift, line), self.shifts_apart)
            weighted = [e.broadcast_float(e.at(slot, self.plane, self.plane)) for slot in slots]
            new = [e.fma(weighted[m], shifts[v], s) for (m, v), s in zip(t.outputs, new, strict=True)]
        return new

    def finished(self, t: Tile, records: list[Value], sums: list[Value]) -> list[Value]:
        """The sums scaled where that is left to do, plus the bias, plus total * shift where the shift is per row."""
        e = self.e
        line = I64(4 * e.level.panel)
        biases = self.vectors(t, self.bias, line)
        if self.spec.kind == "group":
            return [e.b.fadd(value, biases[v]) for (_, v), value in zip(t.outputs, sums, strict=True)]
        scales = self.vectors(t, self.scale, line)
        offsets = [biases[v] for _, v in t.outputs]
        if self.spec.shifted:
            shifts = self.vectors(t, self.shift, line)
            totals = [e.broadcast_float(e.at(r, e.times(self.plane, 3))) for r in records]
            offsets = [e.fma(totals[m], shifts[v], biases[v]) for m, v in t.outputs]
        if self.spec.kind == "row":
            factors = [e.broadcast_float(e.at(r, self.plane)) for r in records]
            sums = [e.b.fmul(e.to_float(value), factors[m]) for (m, _), value in zip(t.outputs, sums, strict=True)]
        return [e.fma(s, scales[v], o) for (_, v), s, o in zip(t.outputs, sums, offsets, strict=True)]

    def vectors(self, t: Tile, address: Value, apart: Value) -> list[Value]:
        """The floats of a tile's panels."""
        return [self.e.load_floats(place) for place in t.across(address, apart)]


def make_panel(spec: LinearSpec) -> Callable[..., Any]:
    """panel(count, q, q_stride, record, record_stride, w, scale, shift, bias, y, y_stride, steps, groups, work, next).

    y = product + bias for `count` rows and the outputs of one panel. `steps` counts STEP columns a group; `work` has
    `panel_work` bytes; `next` is the address of the panel of codes that will be read next.
    """

    @kernel(level_named(spec.level), 15)
    def panel(e: Emitter, count: Value, *arguments: Value) -> None:
        _Panel(e, spec, arguments).emit(count)

    return panel  # type: ignore[no-any-return]


def panels_of_row(spec: LinearSpec) -> int:
    """How many panels a single row is multiplied with at once: more sums hide the latency of each other's products, and
    what begins and ends a panel counts for less. Codes that come from memory are better read in one stream.
    """
    level = level_named(spec.level)
    return 2 if spec.resident and level.in_pairs and level.strips == 2 else 1


def make_row(spec: LinearSpec) -> Callable[..., Any]:
    """row(panels, q, record, w, scale, shift, bias, y, steps, groups): as `make_panel`, for one row and so many full
    panels, whose outputs lie together in y.
    """
    level = level_named(spec.level)

    @kernel(level, 10)
    def row(e: Emitter, panels: Value, q: Value, record: Value, *rest: Value) -> None:
        places, (steps, groups) = rest[:5], rest[5:]
        none = I64(0)

        def some(first: Value, size: int) -> None:
            side = _Panel(e, spec, (q, none, record, none, *places, none, steps, groups, none, none), size)
            side.move(first)
            side.tile(side.sized(1, spec.width, side.levels), none, side.w)

        most = panels_of_row(spec)
        e.ladder(panels, (most, 1) if most > 1 else (1,), some)

    return row  # type: ignore[no-any-return]


def make_inputs(spec: LinearSpec) -> Callable[..., Any]:
    """inputs(q, count, place, moved): the address of activations as the panel kernel is given them, that of q; for
    signed codes `place`, where u = q + 128 of `count` bytes, a multiple of STEP, is written unless `moved` is 0.
    """
    level = level_named(spec.level)
    narrow = replace(level, lanes=min(level.lanes, STEP // 4))

    @kernel(narrow, 4, "int64")
    def inputs(e: Emitter, q: Value, count: Value, place: Value, moved: Value) -> Value:
        vector = 4 * e.level.lanes

        def body(i: Value, _: list[Value]) -> list[Value]:
            offset = e.times(i, vector)
            flipped = e.b.xor(e.load_ints(e.at(q, offset)), e.byte_mask(128))
            e.store(e.at(place, offset), flipped)
            return []

        if not spec.room:
            return q
        with e.b.if_then(e.b.icmp_signed("!=", moved, I64(0))):
            e.loop(e.b.sdiv(count, I64(vector)), [], body)
        return place

    return inputs  # type: ignore[no-any-return]
