"""Some columns rounded one after another, each moving its error into those after it: compiled, since a column is a few
microseconds of arithmetic and would be ten calls.

    c_j = clamp(round(w_j / s) + z, least, most),   e_j = (w_j - s (c_j - z)) / U_jj,   w_k <- w_k - e_j U_jk  for k > j
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOGETHER = 64
"""Rows that go through all the columns together: their values stay in the nearest cache."""
APART = 1024
"""Rows that are worth a thread."""
TINY = float(np.finfo(np.float32).tiny)


def round_block(
    rest: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, least: int, most: int, codes: Tensor
) -> Tensor:
    """The errors e, (columns, rows). `rest` (columns, rows) holds w and is left with what was rounded, `factor` is U of
    these columns, `scale` and `zero` are of every row, `codes` (columns, rows) receives c."""
    errors = torch.empty_like(rest)
    arrays = [t.numpy() for t in (rest, factor, scale.clamp_min(TINY).contiguous(), zero.contiguous(), codes, errors)]
    rows, run = rest.shape[1], _compiled()
    threads = min(torch.get_num_threads(), max(1, rows // APART))
    step = -(-rows // (TOGETHER * threads)) * TOGETHER  # whole groups of rows a thread
    parts = [(at, min(at + step, rows)) for at in range(0, rows, step)]
    if threads == 1:
        run(*arrays, least, most, 0, rows)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: run(*arrays, least, most, *part), parts))
    return errors


@cache
def _compiled() -> Callable[..., None]:
    from numba import njit  # takes a second to import: only where something is compensated

    compiled: Any = njit(nogil=True)
    run: Callable[..., None] = compiled(_round)
    return run


def _round(
    rest: Any, factor: Any, scale: Any, zero: Any, codes: Any, errors: Any, least: int, most: int, first: int, last: int
) -> None:
    """`round_block` of the rows from `first` to `last`."""
    columns = rest.shape[0]
    for at in range(first, last, TOGETHER):
        end = min(at + TOGETHER, last)
        for j in range(columns):
            inverse = np.float32(1) / factor[j, j]
            for r in range(at, end):
                code = min(max(np.rint(rest[j, r] / scale[r]) + zero[r], np.float32(least)), np.float32(most))
                codes[j, r] = np.uint8(code)
                errors[j, r] = (rest[j, r] - (code - zero[r]) * scale[r]) * inverse
            for k in range(j + 1, columns):
                u = factor[j, k]
                for r in range(at, end):
                    rest[k, r] -= u * errors[j, r]
