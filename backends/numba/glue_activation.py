"""Numba code around an activation: a native function that a compiled linear calls by its address.

`build` compiles a copy of this file with the SPEC of the activation in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.elementwise import ActivationSpec, make_activation
from tersor.backends.numba.features import level_named

SPEC = ActivationSpec("generic", "relu")

LEVEL = level_named(SPEC.level)
STRIPS = LEVEL.strips
apply = make_activation(SPEC)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(y, stride, rows, _):  # type: ignore[no-untyped-def]  # addresses and counts
    """Apply in place to a panel of `rows` rows, `stride` bytes apart."""
    for m in range(rows):
        apply(y + m * stride, STRIPS)
