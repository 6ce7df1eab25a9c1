"""Numba code around the product with banks of columns: a step whose units are row blocks times panels.

`build` compiles a copy of this file with the SPEC of the linear in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.bankkernels import BankSpec, make_banks
from tersor.backends.numba.elementwise import make_copy
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_call, make_load

SPEC = BankSpec("avx2", 1, 1)

LEVEL = level_named(SPEC.level)
PANEL = LEVEL.panel
KEPT = 4 * SPEC.quads
multiply = make_banks(SPEC)
load = make_load(LEVEL)
copy = make_copy(LEVEL)
call = make_call(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Operands: rows, x (as `glue_spread` leaves it, in whole banks), bytes between its rows, codes, places, banks a
    group, groups, start, scale, records, bytes between them, bias, y, bytes between its rows, outputs, activation (an
    address, or 0), rows a block. Unit u is panel u % panels of row block u // panels; `work` holds a panel of them.
    """
    rows, x, x_stride, codes = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    places, per_group, groups, start = (
        load(operands + 32), load(operands + 40), load(operands + 48), load(operands + 56),
    )  # fmt: skip
    scale, records, record_bytes, bias = (
        load(operands + 64), load(operands + 72), load(operands + 80), load(operands + 88),
    )  # fmt: skip
    y, y_stride, outputs = load(operands + 96), load(operands + 104), load(operands + 112)
    activate, block = load(operands + 120), load(operands + 128)
    banks = per_group * groups
    panels = (outputs + PANEL - 1) // PANEL
    for unit in range(first, last):
        row = unit // panels * block
        p = unit % panels
        count = min(block, rows - row)
        width = min(PANEL, outputs - p * PANEL)
        place = y + row * y_stride + 4 * PANEL * p
        target = place
        stride = y_stride
        if width < PANEL:
            target = work
            stride = 4 * PANEL
        multiply(
            count,
            x + row * x_stride,
            x_stride,
            codes + p * banks * KEPT * PANEL,
            places + p * banks * KEPT * PANEL,
            per_group,
            groups,
            start + p * groups * PANEL * 4,
            scale + p * groups * PANEL * 4,
            records + row * record_bytes,
            record_bytes,
            bias + 4 * PANEL * p,
            target,
            stride,
        )
        if activate != 0:
            call(activate, target, stride, count, 0)
        if target != place:
            for m in range(count):
                copy(place + m * y_stride, work + m * stride, width)
