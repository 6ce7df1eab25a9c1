"""A linear over kept weights only."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.backends.numba import sparseops
from tersor.backends.numba.elementwise import ACTIVATIONS, Activation
from tersor.backends.numba.features import Level, below, detect, level_named
from tersor.backends.numba.layout import Layout, pack_bias
from tersor.backends.numba.ops import direct
from tersor.backends.numba.reference import activate
from tersor.backends.numba.sparseops import FEW, MOST_COLUMNS, pack_sparse, unpack_sparse
from tersor.compiler.errors import RequestError

_TOLERANCE = 1e-5  # of the largest value: rounding of sums of a few hundred terms


class SparseLinear(nn.Module):
    """y = activation(x @ w^T + bias) in float32 over the weights that are not 0.

    x (..., columns) of any floating type. Where no compiled kernel can be trusted (`level` is None) torch computes it.
    """

    values: Tensor
    places: Tensor
    starts: Tensor
    bias: Tensor

    def __init__(
        self, shape: tuple[int, int], level: str | None, activation: Activation, values: Tensor, places: Tensor,
        starts: Tensor, bias: Tensor,
    ) -> None:  # fmt: skip
        super().__init__()
        self.rows, self.columns = shape
        self.level, self.activation = level, activation
        for name, array in (("values", values), ("places", places), ("starts", starts), ("bias", bias)):
            self.register_buffer(name, array)
        self._constants: Any = (self.rows, self.columns, activation, level)

    @classmethod
    def from_weight(
        cls, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none", level: str | None = None
    ) -> SparseLinear:
        """Pack weight (n, k) and bias (n). `level` asks for a CPU level (default: `features.detect`).

        RequestError for an empty or misshapen matrix, or one of more columns than a place reaches.
        """
        if weight.dim() != 2 or 0 in weight.shape or weight.shape[1] > MOST_COLUMNS:
            shape = tuple(weight.shape)
            raise RequestError(f"a sparse linear needs a matrix of 1 to {MOST_COLUMNS} columns, not shape {shape}")
        rows, columns = weight.shape
        if bias is not None and tuple(bias.shape) != (rows,):
            raise RequestError(f"bias has shape {tuple(bias.shape)}; {rows} outputs need {(rows,)}")
        if activation not in ACTIVATIONS:
            raise RequestError(f"no activation {activation!r}; use one of: {', '.join(ACTIVATIONS)}")
        trusted = _trusted(detect(level), activation)
        if trusted is None:
            warnings.warn("no compiled kernel can be trusted on this CPU; linears run on torch", stacklevel=2)
        packing = trusted or level_named("generic")
        padded = pack_bias(None if bias is None else bias.detach().float(), Layout(rows, columns, 8), packing)
        packed = pack_sparse(weight.detach(), packing)
        return cls((rows, columns), trusted.name if trusted else None, activation, *packed, padded)

    def forward(self, x: Tensor) -> Tensor:
        if self.level is None:
            return activate(F.linear(x, self.dense().to(x.dtype), self.bias[: self.rows].to(x.dtype)), self.activation)
        run = sparseops.sparse_linear if direct(x) else sparseops.linear
        y: Tensor = run(x, self.values, self.places, self.starts, self.bias, *self._constants)
        return y

    def dense(self) -> Tensor:
        """w (n, k) float32."""
        return unpack_sparse(self.values, self.places, self.starts, self.rows, self.columns)

    def with_activation(self, activation: Activation) -> SparseLinear | None:
        """The same linear with an activation after it; None where that kernel cannot be trusted at this level."""
        if self.level is None:
            return None
        trusted = _trusted(level_named(self.level), activation)
        if trusted is None or trusted.name != self.level:
            return None
        arrays = (self.values, self.places, self.starts, self.bias)
        return SparseLinear((self.rows, self.columns), self.level, activation, *arrays)

    def extra_repr(self) -> str:
        kept = self.values.numel() / (self.rows * self.columns)
        return (
            f"in_features={self.columns}, out_features={self.rows}, density={kept:.3f}, activation={self.activation}, "
            f"level={self.level}"
        )


@cache
def _agrees(level: str, activation: Activation) -> bool:
    """Whether both compiled products agree with float64 on a small matrix with every kind of edge."""
    on = level_named(level)
    generator = torch.Generator().manual_seed(0)
    rows, columns = on.panel + 3, 67
    weight = torch.randn(rows, columns, generator=generator)
    weight *= torch.rand(rows, columns, generator=generator) < 0.3
    weight[1] = 0
    bias = torch.randn(rows, generator=generator)
    arrays = (*pack_sparse(weight, on), pack_bias(bias, Layout(rows, columns, 8), on))
    for count in (FEW, on.lanes + 1):
        x = torch.randn(count, columns, generator=generator)
        y = sparseops.sparse_linear(x, *arrays, rows, columns, activation, level)
        wanted = activate(x.double() @ weight.double().T + bias, activation)
        if not bool((y - wanted).abs().max() <= _TOLERANCE * wanted.abs().max()):
            return False
    return True


def _trusted(level: Level | None, activation: Activation) -> Level | None:
    """`level` if its kernels agree here, else the next slower one whose do, else None; warns on a mismatch."""
    while level is not None and not _agrees(level.name, activation):
        warnings.warn(f"the {level.name} kernel of sparse weights is wrong on this CPU; trying another", stacklevel=3)
        level = below(level)
    return level
