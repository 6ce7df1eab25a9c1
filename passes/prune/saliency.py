"""Which weights to drop, and what the others become, where the error of a row w is a quadratic form H.

Dropping weight j alone, the others free to make up for it, costs (survey section 2.1.1, equations 2-3; Hassibi et al.,
"Optimal Brain Surgeon", 1993)

    w_j^2 / (2 [H^-1]_jj),      and the others become      w_k - w_j [H^-1]_kj / [H^-1]_jj

Columns are taken in order and only later ones make up, as in `quantize.compensate`: with U^T U = H^-1, U upper
triangular, the inverse form of the columns from s on has the diagonal d_j = sum_{s <= i <= j} U_ij^2, and dropping
column j moves w_k by -w_j U_jk / U_jj for k > j (Frantar and Alistarh, "SparseGPT", 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tersor.passes.quantize.compensate import inverse_factor

BLOCK = 128

Choose = Callable[[Tensor], Tensor]
"""Scores (rows, columns) of the weights of some columns to the mask of those that are kept."""


def surgeon(weight: Tensor, form: Tensor, columns: int, choose: Choose) -> tuple[Tensor, Tensor]:
    """The weight with what is not kept at 0 and the kept weights making up for it, and the mask of the kept. Each run
    of `columns` is chosen from when the columns before it are done.
    """
    factor = inverse_factor(form)
    width = weight.shape[1]
    rest = weight.T.contiguous()
    keep = torch.empty(rest.shape, dtype=torch.bool)
    for start in range(0, width, columns):
        stop = min(start + columns, width)
        diagonal = factor[start:stop, start:stop].square().sum(0)
        keep[start:stop] = choose((rest[start:stop].square() / diagonal[:, None]).T).T
        _drop(rest, keep, factor, start, stop)
    return (rest * keep).T.contiguous(), keep.T.contiguous()


def _drop(rest: Tensor, keep: Tensor, factor: Tensor, start: int, stop: int) -> None:
    """Set what is not kept of columns start to stop to 0; the columns after each make up for it."""
    for at in range(start, stop, BLOCK):
        end = min(at + BLOCK, stop)
        errors = torch.empty(end - at, rest.shape[1])
        for j in range(at, end):
            errors[j - at] = torch.where(keep[j], 0.0, rest[j] / factor[j, j])
            rest[j + 1 : end].addr_(factor[j, j + 1 : end], errors[j - at], alpha=-1)
        rest[end:].addmm_(factor[at:end, end:].T, errors, alpha=-1)
