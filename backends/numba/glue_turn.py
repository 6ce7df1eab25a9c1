"""Numba code that lays tokens side by side: a step whose units are blocks of tokens.

`build` compiles a copy of this file with the SPEC of the CPU level in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.elementwise import make_copy, make_zero
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_load
from tersor.backends.numba.sparsekernels import SparseSpec, make_turn

SPEC = SparseSpec("generic", "turn")

LANES = level_named(SPEC.level).lanes
LEVEL = level_named(SPEC.level)
turn = make_turn(SPEC)
load = make_load(LEVEL)
copy = make_copy(LEVEL)
zero = make_zero(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Operands: tokens, x, bytes between its rows, columns, y: for a block of tokens a vector of them for every column,
    the columns padded to whole vectors and what is beyond the tokens 0. `work` holds a square of floats.
    """
    tokens, x, stride, columns, y = (
        load(operands), load(operands + 8), load(operands + 16), load(operands + 24), load(operands + 32),
    )  # fmt: skip
    squares = (columns + LANES - 1) // LANES
    for unit in range(first, last):
        start = x + unit * LANES * stride
        count = min(LANES, tokens - unit * LANES)
        target = y + unit * squares * LANES * LANES * 4
        for s in range(squares):
            source = start + 4 * LANES * s
            step = stride
            width = min(LANES, columns - LANES * s)
            if count < LANES or width < LANES:
                zero(work, LANES * LANES)
                for m in range(count):
                    copy(work + 4 * LANES * m, source + m * stride, width)
                source = work
                step = 4 * LANES
            turn(target + 4 * LANES * LANES * s, 4 * LANES, source, step)
