"""Numba code around the product with kept blocks: a step whose units are blocks of tokens times panels.

`build` compiles a copy of this file with the SPEC of the linear in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.blockkernels import BlockSpec, make_blocks
from tersor.backends.numba.elementwise import make_copy
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_call, make_load

SPEC = BlockSpec("generic", 16, 4, "int8", 1)

LEVEL = level_named(SPEC.level)
HEIGHT = SPEC.height
WIDE = max(LEVEL.panel, HEIGHT)
PANEL = LEVEL.panel
TOKENS = SPEC.tokens
BLOCK = SPEC.block_bytes
CODED = SPEC.coded
blocks = make_blocks(SPEC)
load = make_load(LEVEL)
copy = make_copy(LEVEL)
call = make_call(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Operands: tokens, x (as `glue_spread` leaves it), bytes of a block of tokens, weights, places, blocks a group,
    groups, start, scale (floats: the factor), records, bytes between them, bias, y, bytes between its rows, outputs,
    activation (an address, or 0). Unit u is WIDE outputs, number u % panels, of block u // panels of tokens; `work`
    holds them for TOKENS.
    """
    tokens, x, x_bytes, weights = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    places, per_group, groups, start = (
        load(operands + 32), load(operands + 40), load(operands + 48), load(operands + 56),
    )  # fmt: skip
    scale, records, record_bytes, bias = (
        load(operands + 64), load(operands + 72), load(operands + 80), load(operands + 88),
    )  # fmt: skip
    y, y_stride, outputs, activate = (
        load(operands + 96), load(operands + 104), load(operands + 112), load(operands + 120),
    )  # fmt: skip
    kept = per_group * groups
    panels = (outputs + WIDE - 1) // WIDE
    for unit in range(first, last):
        token = unit // panels * TOKENS
        output = unit % panels * WIDE
        count = min(TOKENS, tokens - token)
        width = min(WIDE, outputs - output)
        place = y + token * y_stride + 4 * output
        target = place
        stride = y_stride
        if count < TOKENS or width < WIDE:
            target = work
            stride = 4 * WIDE
        for offset in range(0, width, HEIGHT):
            row = (output + offset) // HEIGHT
            line = row * groups * HEIGHT * 4
            blocks(
                count,
                x + unit // panels * x_bytes,
                4 * TOKENS,
                weights + row * kept * BLOCK,
                places + row * kept * 2,
                per_group,
                groups,
                start + line,
                scale + line if CODED else scale,
                records + token * record_bytes,
                record_bytes,
                bias + 4 * (output + offset),
                target + 4 * offset,
                stride,
            )
        if activate != 0:
            for offset in range(0, width, PANEL):
                call(activate, target + 4 * offset, stride, count, 0)
        if target != place:
            for m in range(count):
                copy(place + m * y_stride, work + m * stride, width)
