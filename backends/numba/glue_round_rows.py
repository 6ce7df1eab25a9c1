"""Numba code that rounds many rows of activations to 8 bits, a group at a time: a step whose units are rows of blocks.

`build` compiles a copy of this file with the SPEC of the rounding in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_load
from tersor.backends.numba.quantiser import make_total
from tersor.backends.numba.rounding import RoundSpec, make_round

SPEC = RoundSpec("generic")

LEVEL = level_named(SPEC.level)
rounded = make_round(SPEC)
load = make_load(LEVEL)
total = make_total(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Unit u is the rows from u * block on.

    Operands: rows, block, x, bytes between its rows, q, records, group, groups; `work` has `round_work` bytes.
    """
    rows, block, x, stride = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    q, records, group, groups = load(operands + 32), load(operands + 40), load(operands + 48), load(operands + 56)
    padded = group * groups
    record_size = 12 * groups + 4
    for unit in range(first, last):
        start = unit * block
        count = min(block, rows - start)
        codes, record = q + start * padded, records + start * record_size
        for g in range(groups):
            source = x + start * stride + 4 * group * g
            slot = record + 4 * g
            rounded(count, source, stride, group, codes + group * g, padded, slot, record_size, groups, work)
        for m in range(count):
            total(record + m * record_size, groups)
