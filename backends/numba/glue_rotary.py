"""Numba code that rotates rows by their position: a step whose units are rows.

`build` compiles a copy of this file with the SPEC of the rotation in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.decoderkernels import RotarySpec, make_rotate
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_load

SPEC = RotarySpec("generic")

LEVEL = level_named(SPEC.level)
rotate = make_rotate(LEVEL)
load = make_load(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """y (batch, heads, tokens, 2 half), dense. Operands: half, heads, tokens, y, then for x, cos and sin: address,
    bytes between sentences, heads and tokens.
    """
    half, heads, tokens, y = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    x, x0, x1, x2 = load(operands + 32), load(operands + 40), load(operands + 48), load(operands + 56)
    c, c0, c1, c2 = load(operands + 64), load(operands + 72), load(operands + 80), load(operands + 88)
    s, s0, s1, s2 = load(operands + 96), load(operands + 104), load(operands + 112), load(operands + 120)
    for m in range(first, last):
        t, rest = m % tokens, m // tokens
        h, i = rest % heads, rest // heads
        rotate(
            y + 8 * half * m,
            x + i * x0 + h * x1 + t * x2,
            c + i * c0 + h * c1 + t * c2,
            s + i * s0 + h * s1 + t * s2,
            half,
        )
