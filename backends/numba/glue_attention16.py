"""Numba code around attention in 16-bit integers: a step whose units are the heads of keys and values of a batch.

`build` compiles a copy of this file with the SPEC of the attention in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.attention16 import (
    LOG2E,
    SIDE,
    VALUE,
    Attention16Spec,
    make_causal,
    make_columns,
    make_keys,
    make_mix,
    make_queries,
    make_scores,
    make_softmax,
    make_values,
)
from tersor.backends.numba.attentionkernels import STRIPS, make_add, make_transpose
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_load

SPEC = Attention16Spec("generic")

LEVEL = level_named(SPEC.level)
TILE = STRIPS * LEVEL.lanes
load = make_load(LEVEL)
column_scales = make_columns(SPEC, SIDE)
value_scales = make_columns(SPEC, VALUE)
round_keys = make_keys(SPEC)
round_values = make_values(SPEC)
round_queries = make_queries(SPEC)
transpose = make_transpose(LEVEL)
scores_of = make_scores(SPEC)
add = make_add(LEVEL, LOG2E)  # scores are exponents of 2
hide = make_causal(SPEC)
softmax = make_softmax(SPEC)
mix = make_mix(SPEC)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """softmax(scale q k^T + mask) v.

    Operands: queries and keys a sentence, heads, heads that share keys, width; q, k, v, y, then the bytes between
    tokens of each, then the bytes between sentences of each; heads lie side by side. Then the mask to be added,
    transposed and padded: (batch, key, query up to a multiple of TILE), or 0 for none, the bytes between two sentences
    of it, the scale (an address), and 1 if the last query sees all keys, the one before it one less, and so on.
    """
    count, tokens, heads, shared = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    width = load(operands + 32)
    q, k, v, y = load(operands + 40), load(operands + 48), load(operands + 56), load(operands + 64)
    q_line, k_line, v_line, y_line = load(operands + 72), load(operands + 80), load(operands + 88), load(operands + 96)
    q_next, k_next, v_next = load(operands + 104), load(operands + 112), load(operands + 120)
    y_next, mask, mask_next = load(operands + 128), load(operands + 136), load(operands + 144)
    scale, causal = load(operands + 152), load(operands + 160)
    lane_row = 4 * TILE
    even = (tokens + 1) // 2 * 2
    key_scales = work
    mix_scales = key_scales + 4 * width
    keys = mix_scales + 4 * width
    values = keys + 2 * tokens * width
    floats = values + 2 * even * width
    queries = floats + width * lane_row
    factors = queries + width * lane_row // 2
    inverse = factors + lane_row
    scores = inverse + lane_row
    weights = scores + (even + 1) * lane_row
    padded = (count + TILE - 1) // TILE * TILE
    groups = heads // shared
    for unit in range(first, last):
        batch, group = unit // groups, unit % groups
        key = k + batch * k_next + 4 * width * group
        value = v + batch * v_next + 4 * width * group
        column_scales(key_scales, key, k_line, tokens, width)
        round_keys(keys, key, k_line, tokens, width, key_scales)
        value_scales(mix_scales, value, v_line, tokens, width)
        round_values(values, value, v_line, tokens, width, mix_scales)
        for head in range(group * shared, (group + 1) * shared):
            query = q + batch * q_next + 4 * width * head
            out = y + batch * y_next + 4 * width * head
            for start in range(0, count, TILE):
                here = min(TILE, count - start)
                seen = tokens
                if causal != 0:
                    seen = min(tokens, max(tokens - count + start + here, 0))
                    if seen == 0:
                        seen = 1  # hidden below
                transpose(floats, query + start * q_line, q_line, here, width)
                round_queries(queries, factors, floats, width, key_scales, scale)
                scores_of(scores, keys, seen, width, queries, factors)
                if mask != 0:
                    add(scores, mask + batch * mask_next + 4 * start, 4 * padded, seen)
                if causal != 0:
                    visible = tokens - count + start + 1
                    hide(scores, max(visible, 0), seen, visible)
                softmax(weights, scores, seen, factors, inverse)
                for column in range(0, width, TILE):
                    mix(
                        out + start * y_line + 4 * column, y_line, here, weights, inverse, values + 4 * column, width,
                        (seen + 1) // 2, mix_scales + 4 * column,
                    )  # fmt: skip
