"""Numba code that multiplies rounded activations with packed codes: a step whose units are row blocks times panels.

`build` compiles a copy of this file with the SPEC of the linear in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.elementwise import make_copy
from tersor.backends.numba.features import level_named
from tersor.backends.numba.layout import STEP
from tersor.backends.numba.memorykernels import make_call, make_load
from tersor.backends.numba.microkernels import LinearSpec, make_inputs, make_panel, make_row

SPEC = LinearSpec("generic", 8, "row", False)

LEVEL = level_named(SPEC.level)
PANEL = LEVEL.panel
multiply = make_panel(SPEC)
multiply_row = make_row(SPEC)
inputs = make_inputs(SPEC)
load = make_load(LEVEL)
copy = make_copy(LEVEL)
call = make_call(LEVEL)
PER_GROUP = SPEC.kind == "group"
WIDTH = SPEC.width
SIGNED = SPEC.room > 0
LOOKED_UP = SPEC.looked_up


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Operands: rows, q, records, codes, scale, shift, bias, y, bytes between its rows, outputs, group, groups,
    activation (an address, or 0), rows a block. Unit u is panel u % panels of row block u // panels; `work` holds a
    panel of rows of y, for the last panel may be partial, and what the panel kernel needs or the activations of the row
    block as signed codes want them.
    """
    rows, q, records = load(operands), load(operands + 8), load(operands + 16)
    codes, scale, shift = load(operands + 24), load(operands + 32), load(operands + 40)
    bias, y, y_stride, outputs = load(operands + 48), load(operands + 56), load(operands + 64), load(operands + 72)
    group, groups, activate = load(operands + 80), load(operands + 88), load(operands + 96)
    block = load(operands + 104)
    padded = group * groups
    record_size = 12 * groups + 4
    panel_codes = padded * PANEL * WIDTH // 8
    panel_scales = 4 * PANEL * (groups if PER_GROUP else 1)
    panel_shifts = 4 * PANEL * groups if SIGNED else panel_scales
    scratch = work + 4 * PANEL * block
    steps = group // STEP
    panels = (outputs + PANEL - 1) // PANEL
    if rows == 1:
        full = min(last, outputs // PANEL)
        if first < full:
            given = inputs(q, padded, scratch, 1)
            target = y + 4 * PANEL * first
            multiply_row(
                full - first,
                given,
                records,
                codes + first * panel_codes,
                scale + first * panel_scales,
                shift if LOOKED_UP else shift + first * panel_shifts,
                bias + 4 * PANEL * first,
                target,
                steps,
                groups,
            )
            if activate != 0:
                call(activate, target, 4 * PANEL, full - first, 0)
            first = full
    start, p = first // panels * block, first % panels
    ready = -1
    for _ in range(first, last):
        after = p + 1 if p + 1 < panels else 0
        count = min(block, rows - start)
        given = inputs(q + start * padded, count * padded, scratch, start - ready)
        ready = start
        width = min(PANEL, outputs - p * PANEL)
        target = y + start * y_stride + 4 * PANEL * p
        stride = y_stride
        if width < PANEL:
            target = work
            stride = 4 * PANEL
        multiply(
            count,
            given,
            padded,
            records + start * record_size,
            record_size,
            codes + p * panel_codes,
            scale + p * panel_scales,
            shift if LOOKED_UP else shift + p * panel_shifts,
            bias + 4 * PANEL * p,
            target,
            stride,
            steps,
            groups,
            scratch,
            codes + after * panel_codes,
        )
        if activate != 0:
            call(activate, target, stride, count, 0)
        if width < PANEL:
            for m in range(count):
                copy(y + (start + m) * y_stride + 4 * PANEL * p, work + 4 * PANEL * m, width)
        p = after
        if p == 0:
            start += block
