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
from torch import Tensor

from tersor.compiler.stores import Affine, Codes, Dense

DAMPING = 0.01
BLOCK = 128

Fit = Callable[[Tensor], Affine]


def inverse_factor(form: Tensor) -> Tensor:
    """U, upper triangular, with U^T U = (H + damp mean(diag H) I)^-1, computed in float64."""
    form = form.to(torch.float64)
    mean = float(form.diagonal().mean())
    damped = form + torch.eye(form.shape[0], dtype=torch.float64) * (DAMPING * mean if mean > 0 else 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.to(torch.float32)


def compensated(weight: Tensor, form: Tensor, group: int, fit: Fit) -> Affine:
    """The affine store whose codes were chosen column by column with compensation; `fit` makes the levels of one
    group."""
    columns = weight.shape[1]
    factor, rest = inverse_factor(form), weight.clone()
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    scales: list[Tensor] = []
    zeros: list[Tensor] = []
    bits = 8
    for start in range(0, columns, min(group, BLOCK)):
        stop = min(start + min(group, BLOCK), columns)
        if start % group == 0:
            levels = fit(rest[:, start : min(start + group, columns)].contiguous())
            bits = levels.bits_per_code
            scales.append(levels.scale.values)
            if levels.zero is not None:
                zeros.append(levels.zero.values)
            scale = levels.scale.values[:, 0]
            zero = levels.zero.values[:, 0].to(torch.float32) if levels.zero is not None else float(2 ** (bits - 1))
        errors = torch.empty(weight.shape[0], stop - start)
        block = rest[:, start:stop]
        for j in range(stop - start):
            code = torch.round(block[:, j] / scale).add_(zero).clamp_(0, 2**bits - 1)
            codes[:, start + j] = code.to(torch.uint8)
            error = (block[:, j] - (code - zero) * scale) / factor[start + j, start + j]
            errors[:, j] = error
            block[:, j + 1 :].addr_(error, factor[start + j, start + j + 1 : stop], alpha=-1)
        rest[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    scale_store = Dense.of(torch.cat(scales, 1), "float16")
    zero_store = Codes(torch.cat(zeros, 1), bits) if zeros else None
    return Affine(Codes(codes, bits), scale_store, zero_store, group)
