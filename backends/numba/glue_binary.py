"""Numba code that combines two tensors element by element: a step whose units are rows.

`build` compiles a copy of this file with the SPEC of the function in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.elementwise import BinarySpec, make_combine
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_load

SPEC = BinarySpec("generic", "add")

LEVEL = level_named(SPEC.level)
load = make_load(LEVEL)
combine = make_combine(LEVEL, SPEC.function)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Row m of z is f(row m of x, row m of y).

    Operands: z, columns, the two inner sizes of the rows' dimensions, then for x and for y: address, 1 or 0 (one float
    for a whole row), bytes between neighbours in the rows' three dimensions, from the inner one outwards.
    """
    z, columns, inner, middle = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    x, x_step = load(operands + 32), load(operands + 40)
    x1, x2, x3 = load(operands + 48), load(operands + 56), load(operands + 64)
    y, y_step = load(operands + 72), load(operands + 80)
    y1, y2, y3 = load(operands + 88), load(operands + 96), load(operands + 104)
    for m in range(first, last):
        i, rest = m % inner, m // inner
        j, k = rest % middle, rest // middle
        left = x + i * x1 + j * x2 + k * x3
        right = y + i * y1 + j * y2 + k * y3
        combine(z + 4 * columns * m, left, right, columns, x_step, y_step)
