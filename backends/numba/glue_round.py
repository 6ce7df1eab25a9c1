"""Numba code that rounds one group of columns of many rows, after an activation: called by its address.

`build` compiles a copy of this file with the SPEC of the rounding in place of the one below.
"""

from __future__ import annotations

from numba import cfunc, types

from tersor.backends.numba.rounding import RoundSpec, make_round

SPEC = RoundSpec("generic")

rounded = make_round(SPEC)


@cfunc(types.void(*[types.int64] * 12), cache=True)
def kernel(count, y, y_stride, other, group, q, q_stride, record, record_stride, groups, center, work):  # type: ignore[no-untyped-def]
    """See `make_round`."""
    rounded(count, y, y_stride, other, group, q, q_stride, record, record_stride, groups, center, work)
