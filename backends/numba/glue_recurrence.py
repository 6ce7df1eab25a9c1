"""Numba code that runs a recurrent layer over time: a step whose units are blocks of batch rows, those of the second
direction after those of the first.

`build` compiles a copy of this file with the SPEC of the cell in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.cells import GATES, CellSpec, make_cell
from tersor.backends.numba.elementwise import make_copy, make_zero
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_call, make_load, make_store
from tersor.backends.numba.recurrentoperands import DIRECTION, HEADER, TABLE

SPEC = CellSpec("generic", "lstm")

LEVEL = level_named(SPEC.level)
LANES = LEVEL.lanes
VECTOR = 4 * LANES
COUNT = GATES[SPEC.mode]
LSTM = SPEC.mode == "lstm"
HEADER_BYTES = 8 * len(HEADER)
DIRECTION_BYTES = 8 * len(DIRECTION)
TABLE_BYTES = 8 * len(TABLE)
load = make_load(LEVEL)
store = make_store(LEVEL)
call = make_call(LEVEL)
copy = make_copy(LEVEL)
zero = make_zero(LEVEL)
cell = make_cell(SPEC)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # see `recurrentoperands`
    """All time steps of blocks `first` to `last`."""
    batch, length, hidden, block = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    inner, states = work + load(operands + 32), work + load(operands + 40)
    memories, tail, image = work + load(operands + 48), work + load(operands + 56), work + load(operands + 64)
    blocks = (batch + block - 1) // block
    full = hidden // LANES
    partial = hidden - full * LANES
    row_bytes = (full + (1 if partial else 0)) * VECTOR
    zero(tail, 2 * COUNT * LANES)
    for unit in range(first, last):
        record = operands + HEADER_BYTES + unit // blocks * DIRECTION_BYTES
        start = unit % blocks * block
        count = min(block, batch - start)
        table = operands + 8 * load(record if count == block else record + 8)
        u, u_time, u_row = load(record + 16), load(record + 24), load(record + 32)
        y, y_time, y_row = load(record + 40), load(record + 48), load(record + 56)
        h_first, c_first, h_last, c_last = (
            load(record + 64), load(record + 72), load(record + 80), load(record + 88),
        )  # fmt: skip
        backward = load(record + 96)
        steps, h, z = load(table), inner + load(table + 8), inner + load(table + 16)
        place = table + TABLE_BYTES
        cells = image + 24 * steps
        for s in range(steps):
            store(image + 24 * s, load(place))
            store(image + 24 * s + 8, cells)
            store(image + 24 * s + 16, load(place + 8))
            size = load(place + 16)
            place += 24
            for _ in range(size):
                store(cells, load(place + 8) + (inner if load(place) != 0 else 0))
                cells += 8
                place += 16
        if partial == 0:  # what is multiplied can be what the cell writes
            states = h
        zero(states, count * row_bytes // 4)
        zero(memories, count * row_bytes // 4)
        for m in range(count):
            copy(states + m * row_bytes, h_first + 4 * (start + m) * hidden, hidden)
            if partial > 0:
                copy(h + 4 * m * hidden, h_first + 4 * (start + m) * hidden, hidden)
            if LSTM:
                copy(memories + m * row_bytes, c_first + 4 * (start + m) * hidden, hidden)
        for step in range(length):
            time = length - 1 - step if backward != 0 else step
            for s in range(steps):
                call(load(image + 24 * s), load(image + 24 * s + 8), 0, load(image + 24 * s + 16), work)
            for m in range(count):
                source = u + time * u_time + (start + m) * u_row
                product = z + 4 * m * COUNT * hidden
                state, memory = states + m * row_bytes, memories + m * row_bytes
                if full > 0:
                    cell(source, product, 4 * hidden, state, memory, full)
                if partial > 0:
                    done = full * VECTOR
                    for k in range(COUNT):
                        copy(tail + k * VECTOR, source + 4 * k * hidden + done, partial)
                        copy(tail + (COUNT + k) * VECTOR, product + 4 * k * hidden + done, partial)
                    cell(tail, tail + COUNT * VECTOR, VECTOR, state + done, memory + done, 1)
                    copy(h + 4 * m * hidden, state, hidden)
                copy(y + time * y_time + (start + m) * y_row, state, hidden)
        for m in range(count):
            copy(h_last + 4 * (start + m) * hidden, states + m * row_bytes, hidden)
            if LSTM:
                copy(c_last + 4 * (start + m) * hidden, memories + m * row_bytes, hidden)
