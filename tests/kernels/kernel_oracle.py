"""What a quantised linear must compute, written with numpy integers and apart from the code under test."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from tersor.backends.numba.features import LEVELS, level_named, supported
from tersor.backends.numba.linear import QuantizedLinear
from tersor.compiler.stores.sums import shrunk

RUNNABLE = [level.name for level in LEVELS if supported(level)]
FASTEST = RUNNABLE[0]
IN_PAIRS = [name for name in RUNNABLE if level_named(name).in_pairs]
# Levels of one vector width differ in the dot product only.
WIDTHS = [
    next(level.name for level in LEVELS if level.lanes == n and supported(level))
    for n in sorted({level.lanes for level in LEVELS if supported(level)})
]


@dataclass(frozen=True)
class Matrix:
    """w[n, k] = scale[n, g] (codes[n, k] - zero[n, g])."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    bias: torch.Tensor | None
    bits: int
    group: int

    def dense(self) -> np.ndarray:
        repeat = self.group or self.codes.shape[1]
        columns = self.codes.shape[1]
        scale, zero = (np.repeat(v.double().numpy(), repeat, 1)[:, :columns] for v in (self.scale, self.zero))
        return scale * (self.codes.double().numpy() - zero)

    def module(self, **options: object) -> QuantizedLinear:
        return QuantizedLinear.from_codes(
            self.codes, self.scale, self.zero, self.bits, self.bias, group=self.group, **options
        )


def random_matrix(rows: int, columns: int, bits: int, group: int = 0, shifted: bool = True, seed: int = 0) -> Matrix:
    """Random codes with both extremes in the first rows."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8, generator=generator)
    codes[0], codes[-1] = (1 << bits) - 1, 0
    groups = -(-columns // group) if group else 1
    scale = torch.rand(rows, groups, generator=generator) * 0.02 + 0.001
    zero = torch.full((rows, groups), float(1 << (bits - 1)))
    if shifted:
        zero = torch.rand(rows, groups, generator=generator) * (1 << bits)
    return Matrix(codes, scale, zero, torch.randn(rows, generator=generator), bits, group)


def narrowed(matrix: Matrix, room: int) -> Matrix:
    """Codes that are moved towards their center until `room` products of them fit 16 bits."""
    center = 1 << (matrix.bits - 1)
    signed = shrunk(matrix.codes.to(torch.int16) - center, room)
    return replace(matrix, codes=(signed + center).to(torch.uint8))


def rounded_activations(x: torch.Tensor, span: int) -> np.ndarray:
    """x with every `span` columns (0: the row) rounded to 255 symmetric levels of max |x| / 127."""
    out = np.zeros(x.shape, np.float64)
    columns = x.shape[1]
    for start in range(0, columns, span or columns):
        piece = x[:, start : start + (span or columns)].numpy()
        peak = np.abs(piece).max(1, keepdims=True)
        inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
        q = np.rint(piece * inverse).astype(np.int64)
        assert np.abs(q).max(initial=0) <= 127
        out[:, start : start + (span or columns)] = q * (peak.astype(np.float64) / 127)
    return out


def expected(matrix: Matrix, x: torch.Tensor, activation_group: int) -> np.ndarray:
    """q(x) @ w^T + bias in float64: products of integers below 2^16 with one scale each lose nothing that matters in
    float64.
    """
    span = min(activation_group, matrix.group) if activation_group and matrix.group else activation_group
    y = rounded_activations(x, span) @ matrix.dense().T
    return y if matrix.bias is None else y + matrix.bias.double().numpy()


def error(actual: torch.Tensor, wanted: np.ndarray) -> float:
    """Largest error relative to the largest value."""
    return float(np.abs(actual.double().numpy() - wanted).max(initial=0) / max(np.abs(wanted).max(initial=0), 1e-30))
