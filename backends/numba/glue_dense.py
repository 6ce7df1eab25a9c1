"""Numba code around the micro-kernel of floating weights: a step whose units are row blocks times runs of panels.

`build` compiles a copy of this file with the SPEC of the linear in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.densekernels import COLUMNS, DenseSpec, make_dense_tile
from tersor.backends.numba.elementwise import make_copy
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_call, make_load

SPEC = DenseSpec("generic", "float32")

LEVEL = level_named(SPEC.level)
PANEL = LEVEL.panel
SIZE = SPEC.itemsize
tile = make_dense_tile(SPEC)
load = make_load(LEVEL)
copy = make_copy(LEVEL)
call = make_call(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Operands: rows, x, bytes between its rows, weights, bias, y, bytes between its rows, outputs, columns, factor
    (bits of a float), activation (an address, or 0), rows a block, panels a run. Unit u is run u % runs of row block
    u // runs; `work` holds a panel of a block of y, for the last panel may be partial.
    """
    rows, x, x_stride, weights = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    bias, y, y_stride, outputs = load(operands + 32), load(operands + 40), load(operands + 48), load(operands + 56)
    columns, factor, activate = load(operands + 64), load(operands + 72), load(operands + 80)
    block, run = load(operands + 88), load(operands + 96)
    panels = (outputs + PANEL - 1) // PANEL
    runs = (panels + run - 1) // run
    for unit in range(first, last):
        row = unit // runs * block
        begin = unit % runs * run
        count = min(block, rows - row)
        # A block of columns at a time: the activations stay in the second-level cache while the panels pass.
        for k in range(0, columns, COLUMNS):
            wide = min(COLUMNS, columns - k)
            for p in range(begin, min(begin + run, panels)):
                width = min(PANEL, outputs - p * PANEL)
                target = y + row * y_stride + 4 * PANEL * p
                stride = y_stride
                if width < PANEL:
                    target = work
                    stride = 4 * PANEL
                m = 0
                while m < count:
                    place = target + m * stride
                    start = bias + 4 * PANEL * p if k == 0 else place
                    done = tile(
                        count - m,
                        x + (row + m) * x_stride + 4 * k,
                        x_stride,
                        weights + (p * columns + k) * PANEL * SIZE,
                        start,
                        0 if k == 0 else stride,
                        factor,
                        place,
                        stride,
                        wide,
                    )
                    if k + wide == columns and activate != 0:
                        call(activate, place, stride, done, 0)
                    m += done
                if width < PANEL and k + wide == columns:
                    for m in range(count):
                        copy(y + (row + m) * y_stride + 4 * PANEL * p, work + 4 * PANEL * m, width)
