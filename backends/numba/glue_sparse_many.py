"""Numba code around the sparse product of many tokens: a step whose units are blocks of tokens times panels.

`build` compiles a copy of this file with the SPEC of the CPU level in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.elementwise import make_copy
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_call, make_load
from tersor.backends.numba.sparsekernels import SparseSpec, make_accumulate, make_turn

SPEC = SparseSpec("generic", "many")

LEVEL = level_named(SPEC.level)
LANES = LEVEL.lanes
PANEL = LEVEL.panel
accumulate = make_accumulate(SPEC)
turn = make_turn(SPEC)
load = make_load(LEVEL)
copy = make_copy(LEVEL)
call = make_call(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Operands: tokens, x (as `glue_turn` leaves it), columns, values, places, starts, bias, y, bytes between its rows,
    outputs, activation (an address, or 0). Unit u is panel u % panels of block u // panels of tokens; `work` holds a
    square of floats and a panel of a block.
    """
    tokens, x, columns, values = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    places, starts, bias, y = load(operands + 32), load(operands + 40), load(operands + 48), load(operands + 56)
    y_stride, outputs, activate = load(operands + 64), load(operands + 72), load(operands + 80)
    panels = (outputs + PANEL - 1) // PANEL
    block = (columns + LANES - 1) // LANES * LANES * LANES * 4
    aside = work + 4 * LANES * LANES
    for unit in range(first, last):
        token = unit // panels * LANES
        output = unit % panels * PANEL
        count = min(LANES, tokens - token)
        width = min(PANEL, outputs - output)
        place = y + token * y_stride + 4 * output
        target = place
        stride = y_stride
        if count < LANES or width < PANEL:
            target = aside
            stride = 4 * PANEL
        source = x + unit // panels * block
        end = load(starts + 8 * output)
        for begin in range(0, width, LANES):
            for i in range(LANES):
                start = end
                end = load(starts + 8 * (output + begin + i + 1))
                accumulate(work + 4 * LANES * i, source, values + 4 * start, places + 2 * start, end - start,
                           bias + 4 * (output + begin + i))  # fmt: skip
            turn(target + 4 * begin, stride, work, 4 * LANES)
        if activate != 0:
            call(activate, target, stride, count, 0)
        if target != place:
            for m in range(count):
                copy(place + m * y_stride, aside + m * stride, width)
