"""Numba code that multiplies rounded activations with packed codes and rounds the result again, after an activation:
a step whose units are row blocks times groups of outputs. The floats never leave the scratch memory.

`build` compiles a copy of this file with the SPEC in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.features import level_named
from tersor.backends.numba.fusedspec import MultiplyRoundSpec
from tersor.backends.numba.layout import STEP
from tersor.backends.numba.memorykernels import make_load
from tersor.backends.numba.microkernels import LinearSpec, make_inputs, make_panel
from tersor.backends.numba.rounding import RoundSpec, make_round

SPEC = MultiplyRoundSpec(LinearSpec("generic", 8, "row", False), RoundSpec("generic"))

LEVEL = level_named(SPEC.linear.level)
PANEL = LEVEL.panel
multiply = make_panel(SPEC.linear)
inputs = make_inputs(SPEC.linear)
rounded = make_round(SPEC.rounding)
load = make_load(LEVEL)
PER_GROUP = SPEC.linear.kind == "group"
WIDTH = SPEC.linear.width
SIGNED = SPEC.linear.room > 0


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Operands: rows, q, records, codes, scale, shift, bias, group, groups, rows a block; then of the result q,
    records, group, groups. Unit u is group u % groups of row block u // groups. `work` holds the activations of a row
    block as signed codes want them, where they are, then the floats of a unit, then what rounding and panel kernel
    need.
    """
    rows, q, records = load(operands), load(operands + 8), load(operands + 16)
    codes, scale, shift, bias = load(operands + 24), load(operands + 32), load(operands + 40), load(operands + 48)
    group, groups, block = load(operands + 56), load(operands + 64), load(operands + 72)
    out, out_records, out_group = load(operands + 80), load(operands + 88), load(operands + 96)
    out_groups = load(operands + 104)
    padded = group * groups
    record_size = 12 * groups + 4
    out_size = 12 * out_groups + 4
    panel_codes = padded * PANEL * WIDTH // 8
    panel_scales = 4 * PANEL * (groups if PER_GROUP else 1)
    panel_shifts = 4 * PANEL * groups if SIGNED else panel_scales
    stride = 4 * out_group
    floats = work + (block * padded + 63) // 64 * 64 if SIGNED else work
    scratch = floats + block * stride
    ready = -1
    panels = out_group // PANEL
    for unit in range(first, last):
        start = unit // out_groups * block
        g = unit % out_groups
        count = min(block, rows - start)
        given = inputs(q + start * padded, count * padded, work, start - ready)
        ready = start
        for i in range(panels):
            p = g * panels + i
            multiply(
                count,
                given,
                padded,
                records + start * record_size,
                record_size,
                codes + p * panel_codes,
                scale + p * panel_scales,
                shift + p * panel_shifts,
                bias + 4 * PANEL * p,
                floats + 4 * PANEL * i,
                stride,
                group // STEP,
                groups,
                scratch,
                codes + (p + 1) * panel_codes,
            )
        rounded(
            count,
            floats,
            stride,
            out_group,
            out + start * out_group * out_groups + g * out_group,
            out_group * out_groups,
            out_records + start * out_size + 4 * g,
            out_size,
            out_groups,
            scratch,
        )
