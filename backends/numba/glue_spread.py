"""Numba code that lays tokens side by side, or one by itself: a step whose units are blocks of tokens.

`build` compiles a copy of this file with the SPEC of the CPU level in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.blockkernels import SpreadSpec, make_flip, make_spread
from tersor.backends.numba.elementwise import make_copy, make_zero
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_load

SPEC = SpreadSpec("generic")

LEVEL = level_named(SPEC.level)
LANES = LEVEL.lanes
spread = make_spread(LEVEL)
flip = make_flip(LEVEL)
load = make_load(LEVEL)
copy = make_copy(LEVEL)
zero = make_zero(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Operands: tokens, x, bytes between its rows, its 32-bit words, y, words of y (whole vectors, no fewer), bits to
    flip in every word, tokens side by side (1, LANES or half of them). A unit is one token or LANES of them; words
    beyond those of x are 0 before the flip. `work` holds a square.
    """
    tokens, x, stride, words = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    y, room, bits, beside = load(operands + 32), load(operands + 40), load(operands + 48), load(operands + 56)
    whole = words // LANES * LANES
    for unit in range(first, last):
        if beside == 1:
            source = x + unit * stride
            target = y + unit * room * 4
            if whole > 0:
                flip(target, source, words // LANES, bits)
            for at in range(whole, room, LANES):
                zero(work, LANES)
                if words > at:
                    copy(work, source + 4 * at, words - at)
                flip(target + 4 * at, work, 1, bits)
            continue
        start = x + unit * LANES * stride
        count = min(LANES, tokens - unit * LANES)
        target = y + unit * room * LANES * 4
        half = 2 * LANES if beside == LANES else 2 * LANES * room
        for at in range(0, room, LANES):
            source = start + 4 * at
            step = stride
            width = min(LANES, words - at)
            if width < LANES:
                zero(work, LANES * LANES)
                if width > 0:
                    for m in range(count):
                        copy(work + 4 * LANES * m, source + m * stride, width)
                source = work
                step = 4 * LANES
            spread(target + 4 * beside * at, 4 * beside, half, source, step, count, bits)
