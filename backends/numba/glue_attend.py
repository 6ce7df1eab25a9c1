"""Numba code around attention over keys and values that `glue_append` wrote: a step whose units are blocks of queries
of the heads that share a key head.

`build` compiles a copy of this file with the SPEC of the CPU level in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.attentionkernels import STRIPS, make_product
from tersor.backends.numba.decoderkernels import AttendSpec, make_row_softmax
from tersor.backends.numba.elementwise import make_copy
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_load

SPEC = AttendSpec("generic")

LEVEL = level_named(SPEC.level)
LANES = LEVEL.lanes
TILE = STRIPS * LANES
load = make_load(LEVEL)
copy = make_copy(LEVEL)
softmax = make_row_softmax(LEVEL)
product = make_product(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """softmax(scale q k^T + mask) v for `tokens` queries, over `offset` + `kept` keys.

    Operands: tokens, queries of a unit, offset, kept, key heads, heads that share one, width, causal (query t sees
    `offset` + t + 1 keys), the address of scale, then for q and for y: address, bytes between sentences, heads and
    tokens, the same for the mask (0: none; rows padded to TILE keys), then keys, bytes of a head, values, bytes of a
    head. `work` holds for the rows that are computed together (the queries of a unit, or with one token the heads that
    share) their padded scores, an inverse sum and a padded result.
    """
    tokens, block, offset, kept = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    heads, group, width = load(operands + 32), load(operands + 40), load(operands + 48)
    causal, scale = load(operands + 56), load(operands + 64)
    q, q0, q1, q2 = load(operands + 72), load(operands + 80), load(operands + 88), load(operands + 96)
    y, y0, y1, y2 = load(operands + 104), load(operands + 112), load(operands + 120), load(operands + 128)
    mask, mask0, mask1, mask2 = load(operands + 136), load(operands + 144), load(operands + 152), load(operands + 160)
    keys, key_bytes = load(operands + 168), load(operands + 176)
    values, value_bytes = load(operands + 184), load(operands + 192)
    blocks = (tokens + block - 1) // block
    padded = (width + TILE - 1) // TILE * TILE
    for unit in range(first, last):
        start, pair = unit % blocks * block, unit // blocks
        i, key_head = pair // heads, pair % heads
        count = min(block, tokens - start)
        seen = offset + kept
        if causal != 0:
            seen = offset + start + count
        line = 4 * ((seen + TILE - 1) // TILE * TILE)
        loops, rows, q_line, y_line, mask_line = group, count, q2, y2, mask2
        if tokens == 1:
            loops, rows, q_line, y_line, mask_line = 1, group, q1, y1, mask1
        inverse = work + rows * line
        result = inverse + 64 * ((rows + 15) // 16)
        for j in range(loops):
            head = key_head * group + j
            source = q + i * q0 + head * q1 + start * q2
            target = y + i * y0 + head * y1 + start * y2
            hidden = mask + i * mask0 + head * mask1 + start * mask2
            for column in range(0, seen, TILE):
                columns = keys + pair * key_bytes + 4 * width * column
                m = 0
                while m < rows:
                    m += product(
                        rows - m, source + m * q_line, q_line, width, columns, 4 * TILE,
                        work + m * line + 4 * column, line, scale, 0,
                    )  # fmt: skip
            for m in range(rows):
                alone = seen
                if causal != 0 and tokens > 1:
                    alone = offset + start + m + 1
                row = 0
                if mask != 0:
                    row = hidden + m * mask_line
                softmax(work + m * line, alone, line // (4 * LANES), row, inverse + 4 * m)
            out, out_line = target, y_line
            if padded != width:
                out, out_line = result, 4 * padded
            for column in range(0, padded, TILE):
                m = 0
                while m < rows:
                    m += product(
                        rows - m, work + m * line, line, seen, values + pair * value_bytes + 4 * column, 4 * padded,
                        out + m * out_line + 4 * column, out_line, inverse + 4 * m, 4,
                    )  # fmt: skip
            if padded != width:
                for m in range(rows):
                    copy(target + m * y_line, result + m * out_line, width)
