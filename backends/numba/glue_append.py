"""Numba code that writes keys and values where `glue_attend` reads them: a step whose units are key heads.

`build` compiles a copy of this file with the SPEC of the CPU level in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.attentionkernels import STRIPS
from tersor.backends.numba.decoderkernels import AppendSpec, make_scatter
from tersor.backends.numba.elementwise import make_copy
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_load

SPEC = AppendSpec("generic")

LEVEL = level_named(SPEC.level)
TILE = STRIPS * LEVEL.lanes
load = make_load(LEVEL)
copy = make_copy(LEVEL)
scatter = make_scatter(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Token t of `tokens` becomes key `offset` + t.

    Operands: tokens, offset, heads, width, then for k and for v: address, bytes between sentences, heads and tokens,
    then the address of the keys, bytes of a head, and the same of the values. Keys of a head lie in blocks of TILE,
    transposed: (block, width, TILE); values in rows of `width` up to a multiple of TILE.
    """
    tokens, offset, heads, width = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    k, k0, k1, k2 = load(operands + 32), load(operands + 40), load(operands + 48), load(operands + 56)
    v, v0, v1, v2 = load(operands + 64), load(operands + 72), load(operands + 80), load(operands + 88)
    keys, key_bytes = load(operands + 96), load(operands + 104)
    values, value_bytes = load(operands + 112), load(operands + 120)
    line = 4 * ((width + TILE - 1) // TILE * TILE)
    for unit in range(first, last):
        i, h = unit // heads, unit % heads
        for t in range(tokens):
            place = offset + t
            block = keys + unit * key_bytes + 4 * TILE * width * (place // TILE)
            scatter(block + 4 * (place % TILE), 4 * TILE, k + i * k0 + h * k1 + t * k2, width)
            copy(values + unit * value_bytes + line * place, v + i * v0 + h * v1 + t * v2, width)
