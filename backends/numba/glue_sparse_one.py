"""Numba code around the sparse product of single tokens: a step whose units are tokens times panels.

`build` compiles a copy of this file with the SPEC of the CPU level in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.elementwise import make_copy
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_call, make_load
from tersor.backends.numba.sparsekernels import SparseSpec, make_dot

SPEC = SparseSpec("generic", "one")

LEVEL = level_named(SPEC.level)
PANEL = LEVEL.panel
dot = make_dot(SPEC)
load = make_load(LEVEL)
copy = make_copy(LEVEL)
call = make_call(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Operands: x, bytes between its rows, values, places, starts, bias, y, bytes between its rows, outputs, activation
    (an address, or 0). Unit u is panel u % panels of token u // panels; `work` holds a panel of floats, for the last
    may be partial.
    """
    x, x_stride, values, places = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    starts, bias, y, y_stride = load(operands + 32), load(operands + 40), load(operands + 48), load(operands + 56)
    outputs, activate = load(operands + 64), load(operands + 72)
    panels = (outputs + PANEL - 1) // PANEL
    for unit in range(first, last):
        token = unit // panels
        output = unit % panels * PANEL
        width = min(PANEL, outputs - output)
        place = y + token * y_stride + 4 * output
        target = work if width < PANEL else place
        end = load(starts + 8 * output)
        for i in range(width):
            start = end
            end = load(starts + 8 * (output + i + 1))
            dot(target + 4 * i, x + token * x_stride, values + 4 * start, places + 2 * start, end - start,
                bias + 4 * (output + i))  # fmt: skip
        if activate != 0:
            call(activate, target, 0, 1, 0)
        if width < PANEL:
            copy(place, work, width)
