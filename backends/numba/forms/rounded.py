"""Any matrix through the 8-bit kernel: rounded to 255 levels a row, or a group of a row, where that changes little."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tersor.backends.numba.denselinear import DenseLinear
from tersor.backends.numba.forms.form import Target
from tersor.backends.numba.linear import QuantizedLinear

GROUP = 64
WORST = 0.01
"""Root mean square of the rounding, relative to that of the weights: about what rounding activations costs."""


def rounded(matrix: Tensor, group: int) -> tuple[Tensor, Tensor, float]:
    """codes (n, k) uint8 around 128, scale (n, groups), and the relative root mean square of the error.

    w' = scale (code - 128), scale = max |w| / 127 over `group` columns (0: the row), so |w' - w| <= scale / 2.
    """
    rows, columns = matrix.shape
    group = group or columns
    padded = nn.functional.pad(matrix, (0, -columns % group)).view(rows, -1, group)
    scale = padded.abs().amax(-1) / 127
    steps = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale)).unsqueeze(-1)
    levels = (padded * steps).round()
    error = (levels * scale.unsqueeze(-1) - padded).square().sum().sqrt() / padded.square().sum().sqrt()
    codes = (levels + 128).to(torch.uint8).reshape(rows, -1)[:, :columns].contiguous()
    return codes, scale, float(error.nan_to_num(0.0))


def rounded_linear(matrix: Tensor, bias: Tensor | None, target: Target) -> nn.Module:
    """The 8-bit linear with a scale per row, else per group, whose error is at most WORST; else one in float32."""
    for group in (0, GROUP) if matrix.shape[1] > GROUP else (0,):
        codes, scale, error = rounded(matrix, group)
        if error <= WORST:
            zero = torch.full_like(scale, 128.0)
            options = ("none", target.group() if not group else GROUP, group, target.level.name)
            return QuantizedLinear.from_codes(codes, scale, zero, 8, bias, *options)  # type: ignore[arg-type]
    return DenseLinear.from_weight(matrix, bias, "none", target.level.name)
