"""Rounding that compensates: each column's rounding error is moved into the columns not yet rounded.

For a row w of the weight and the quadratic form H of its error (E[x x^T] for a weight read as y = x W^T, E[g g^T] for
rows that are looked up)

    min over codes of  (w - w^)^T H (w - w^)     greedily, column by column:
    e_j = (w_j - w^_j) / U_jj,   w_k <- w_k - e_j U_jk  for k > j,   U^T U = (H + damp I)^-1, U upper triangular

This is Optimal Brain Surgeon (survey section 2.1.1, equations 2-3) applied to rounding: Frantar et al., "GPTQ:
Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022). The scale of a group is fitted
when its first column is reached.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.linalg import lapack
from torch import Tensor

from tersor.compiler.errors import CompilerBug
from tersor.compiler.stores import Affine, Codes, Dense
from tersor.compiler.threads import using_threads
from tersor.passes.quantize.columns import round_block

DAMPING = 0.01
BLOCK = 128
ROWS = 4096
APART = 2**22
"""Weights from which on several threads are worth waiting for each other after every step."""

Fit = Callable[[Tensor, Tensor], Affine]


def inverse_factor(form: Tensor) -> Tensor:
    """U, upper triangular, with U^T U = (H + damp mean(diag H) I)^-1, computed in float64.

    With J the matrix that turns the order around and J H J = L L^T, R = J L J is upper triangular, H = R R^T and
    U = R^-1.
    """
    damped = form.flip(0, 1).to(torch.float64)
    mean = float(damped.diagonal().mean())
    damped.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
    # In place, since each of these is as large as the weights of a layer in float64.
    lower, failed = lapack.dpotrf(damped.numpy().T, lower=1, clean=1, overwrite_a=1)
    if not failed:
        lower, failed = lapack.dtrtri(lower, lower=1, overwrite_c=1)
    if failed:
        raise CompilerBug(f"the damped form of an error of width {len(form)} is not positive definite")
    return torch.from_numpy(lower).to(torch.float32).flip(0, 1)


def compensated(weight: Tensor, factor: Tensor, group: int, ratio: Tensor, fit: Fit) -> Affine:
    """The affine store whose codes were chosen column by column with compensation by the `inverse_factor` of an error;
    `fit` makes the levels of one group from its columns and its part (rows, 1) of `ratio` (rows, groups). Rows do not
    depend on each other: they go `ROWS` at a time."""
    with using_threads(1 if weight.numel() < APART else torch.get_num_threads()):
        pieces = zip(weight.split(ROWS), ratio.split(ROWS), strict=True)
        parts = [_compensated(rows, factor, group, by, fit) for rows, by in pieces]
    codes, scales, zeros, bits = zip(*parts, strict=True)
    zero = None if zeros[0] is None else Codes(torch.cat(zeros), bits[0])
    return Affine(Codes(torch.cat(codes), bits[0]), Dense.of(torch.cat(scales), "float16"), zero, group)


def _compensated(
    weight: Tensor, factor: Tensor, group: int, ratio: Tensor, fit: Fit
) -> tuple[Tensor, Tensor, Tensor | None, int]:
    """Codes, scales, zero points and bits of some rows."""
    columns = weight.shape[1]
    rest = weight.T.contiguous()  # a column of the weight is read and written as a whole
    codes = torch.empty(rest.shape, dtype=torch.uint8)
    fitted: list[Affine] = []
    for start in range(0, columns, min(group, BLOCK)):
        stop = min(start + min(group, BLOCK), columns)
        if start % group == 0:
            columns_of_group = rest[start : min(start + group, columns)].T.contiguous()
            fitted.append(fit(columns_of_group, ratio[:, start // group : start // group + 1]))
        levels = fitted[-1]
        most = 2**levels.bits_per_code - 1
        zero = levels.zero.values[:, 0].to(torch.float32) if levels.zero else torch.full((len(weight),), (most + 1) / 2)
        least = 0 if levels.zero else 1  # symmetric levels leave code 0 unused
        within = factor[start:stop, start:stop].contiguous()
        errors = round_block(rest[start:stop], within, levels.scale.values[:, 0], zero, least, most, codes[start:stop])
        rest[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    scales = torch.cat([levels.scale.values for levels in fitted], 1)
    zeros = [levels.zero.values for levels in fitted if levels.zero is not None]
    return codes.T.contiguous(), scales, torch.cat(zeros, 1) if zeros else None, fitted[0].bits_per_code
