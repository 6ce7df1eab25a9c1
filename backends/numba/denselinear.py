"""A linear over floating weights."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.backends.numba import denseops
from tersor.backends.numba.densekernels import Storage
from tersor.backends.numba.densepacking import narrowed, pack_dense, storage_of, unpack_dense
from tersor.backends.numba.elementwise import ACTIVATIONS, Activation
from tersor.backends.numba.features import Level, below, detect, level_named
from tersor.backends.numba.layout import Layout, pack_bias
from tersor.backends.numba.ops import direct
from tersor.backends.numba.reference import activate
from tersor.compiler.errors import RequestError

_TOLERANCE = 1e-5  # of the largest value: rounding of sums of a few hundred terms


class DenseLinear(nn.Module):
    """y = activation(x @ w^T + bias) in float32, with w = stored * 2^exponent.

    x (..., columns) of any floating type. Holds the packed matrix only, in 16 bits where those hold every value
    exactly. Where no compiled kernel can be trusted (`level` is None) torch computes it.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        exponent: int,
        level: str | None,
        activation: Activation,
        weight: Tensor,
        bias: Tensor,
    ) -> None:
        super().__init__()
        self.rows, self.columns = shape
        self.exponent, self.level, self.activation = exponent, level, activation
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self._constants: Any = (self.rows, self.columns, exponent, activation, level)

    @classmethod
    def from_weight(
        cls, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none", level: str | None = None
    ) -> DenseLinear:
        """Pack weight (n, k) and bias (n). `level` asks for a CPU level (default: `features.detect`).

        RequestError for an empty or misshapen matrix.
        """
        if weight.dim() != 2 or 0 in weight.shape:
            raise RequestError(f"a linear needs a matrix with rows and columns, not shape {tuple(weight.shape)}")
        rows, columns = weight.shape
        if bias is not None and tuple(bias.shape) != (rows,):
            raise RequestError(f"bias has shape {tuple(bias.shape)}; {rows} outputs need {(rows,)}")
        if activation not in ACTIVATIONS:
            raise RequestError(f"no activation {activation!r}; use one of: {', '.join(ACTIVATIONS)}")
        held = narrowed(weight)
        trusted = _trusted(detect(level), held.storage, activation)
        if trusted is None:
            warnings.warn("no compiled kernel can be trusted on this CPU; linears run on torch", stacklevel=2)
        packing = trusted or level_named("generic")
        padded = pack_bias(None if bias is None else bias.detach().float(), Layout(rows, columns, 8), packing)
        packed = pack_dense(held.stored, packing)
        return cls((rows, columns), held.exponent, trusted.name if trusted else None, activation, packed, padded)

    def forward(self, x: Tensor) -> Tensor:
        if self.level is None:
            return activate(F.linear(x, self.dense().to(x.dtype), self.bias[: self.rows].to(x.dtype)), self.activation)
        run = denseops.dense_linear if direct(x) else denseops.linear
        y: Tensor = run(x, self.weight, self.bias, *self._constants)
        return y

    def dense(self) -> Tensor:
        """w (n, k) float32."""
        level = level_named(self.level or "generic")
        stored = unpack_dense(self.weight, self.rows, self.columns, level).float()
        return torch.ldexp(stored, torch.tensor(self.exponent)) if self.exponent else stored

    def with_activation(self, activation: Activation) -> DenseLinear | None:
        """The same linear with an activation after it; None where that kernel cannot be trusted at this level."""
        if self.level is None:
            return None
        trusted = _trusted(level_named(self.level), storage_of(self.weight), activation)
        if trusted is None or trusted.name != self.level:
            return None
        return DenseLinear((self.rows, self.columns), self.exponent, self.level, activation, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.columns}, out_features={self.rows}, storage={storage_of(self.weight)}, "
            f"activation={self.activation}, level={self.level}"
        )


@cache
def _agrees(level: str, storage: Storage, activation: Activation) -> bool:
    """Whether the compiled linear agrees with float64 on a small matrix with every kind of edge."""
    on = level_named(level)
    generator = torch.Generator().manual_seed(0)
    rows, columns = on.panel + 3, 67
    weight = torch.randn(rows, columns, generator=generator).to(getattr(torch, storage))
    x = torch.randn(sum(on.row_tiles), columns, generator=generator)
    bias = torch.randn(rows, generator=generator)
    padded = pack_bias(bias, Layout(rows, columns, 8), on)
    y = denseops.dense_linear(x, pack_dense(weight, on), padded, rows, columns, -1, activation, level)
    wanted = activate(x.double() @ weight.double().T / 2 + bias, activation)
    return bool((y - wanted).abs().max() <= _TOLERANCE * wanted.abs().max())


def _trusted(level: Level | None, storage: Storage, activation: Activation) -> Level | None:
    """`level` if its kernel agrees here, else the next slower one that does, else None; warns on a mismatch."""
    while level is not None and not _agrees(level.name, storage, activation):
        warnings.warn(f"the {level.name} kernel of floating weights is wrong on this CPU; trying another", stacklevel=3)
        level = below(level)
    return level
