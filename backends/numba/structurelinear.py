"""A linear over kept blocks or banks of columns."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tersor.backends.numba import structureops
from tersor.backends.numba.densepacking import narrowed
from tersor.backends.numba.elementwise import Activation
from tersor.backends.numba.features import Level, below, detect, level_named
from tersor.backends.numba.layout import ceil_to
from tersor.backends.numba.ops import direct
from tersor.backends.numba.reference import activate, quantize_activations
from tersor.backends.numba.structure import Packed, Structure, pack_structure, unpack_structure
from tersor.compiler.errors import RequestError

_TOLERANCE = 1e-5  # of the largest value: a few floating operations a group, or rounding of sums


class StructuredLinear(nn.Module):
    """y = activation(q(x) @ w^T + bias) over the kept weights of w, codes with a scale per output or per group of kept
    columns; or activation(x @ w^T + bias) in float32 over floating ones.

    x (..., columns) of any floating type; q(x) rounds it to 8 bits symmetrically, with one scale per row.
    """

    weights: Tensor
    places: Tensor
    start: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(
        self, structure: Structure, exponent: int, level: str, activation: Activation, *arrays: Tensor
    ) -> None:
        super().__init__()
        self.structure, self.exponent, self.level = structure, exponent, level
        self.activation: Activation = activation
        for name, array in zip(("weights", "places", "start", "scale", "bias"), arrays, strict=True):
            self.register_buffer(name, array)
        self._constants: Any = (structure.ints(), exponent, activation, level)

    @classmethod
    def from_values(
        cls,
        structure: Structure,
        values: Tensor,
        index: Tensor,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        level: str | None = None,
    ) -> StructuredLinear:
        """Pack values (rows, kept) of int8 with scale (rows, groups), or floating ones without; index as
        `pack_structure` wants it; bias (rows).

        RequestError where the structure has no kernel or none can be trusted.
        """
        coded = scale is not None
        if bias is not None and tuple(bias.shape) != (structure.rows,):
            raise RequestError(f"bias has shape {tuple(bias.shape)}; {structure.rows} outputs need {(structure.rows,)}")
        reason = structure.refuse(coded, detect(level))
        if reason is not None:
            raise RequestError(reason)
        held = None if coded else narrowed(values)
        stored, exponent = (values, 0) if held is None else (held.stored, held.exponent)
        trusted = _trusted(detect(level), _small(structure), str(stored.dtype).removeprefix("torch."))
        if trusted is None:
            raise RequestError("no kernel over blocks or banks can be trusted on this CPU")
        packed = pack_structure(structure, stored, index, scale, trusted)
        padded = torch.zeros(ceil_to(structure.rows, structure.panel(trusted)))
        if bias is not None:
            padded[: structure.rows] = bias.detach()
        arrays = (packed.weights, packed.places, packed.start, packed.scale, padded)
        return cls(structure, exponent, trusted.name, "none", *arrays)

    @property
    def packed(self) -> Packed:
        return Packed(self.weights, self.places, self.start, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        run = structureops.structured_linear if direct(x) else structureops.linear
        y: Tensor = run(x, self.weights, self.places, self.start, self.scale, self.bias, *self._constants)
        return y

    def dense(self) -> Tensor:
        """w (n, k) float32."""
        return unpack_structure(self.structure, self.packed, self.exponent, self.level)

    def with_activation(self, activation: Activation) -> StructuredLinear | None:
        """The same linear with an activation after it."""
        arrays = (self.weights, self.places, self.start, self.scale, self.bias)
        return StructuredLinear(self.structure, self.exponent, self.level, activation, *arrays)

    def extra_repr(self) -> str:
        s = self.structure
        kept = f"{s.kept} of {s.bank}" if s.bank else f"{s.kept} blocks of {s.height}x{s.width}"
        return (
            f"in_features={s.columns}, out_features={s.rows}, kept={kept}, group={s.group}, "
            f"weights={self.weights.dtype}, activation={self.activation}, level={self.level}"
        )


def _small(s: Structure) -> Structure:
    """The structure a kernel is checked on: of the same kernel, with every kind of edge."""
    if s.bank:
        return Structure(67, 2 * s.bank + 5, 1, 1, s.bank, s.kept, s.kept if s.group else 0)
    return Structure(2 * s.height + 3, 69, s.height, s.width, 0, 9, 4 * s.width if s.group else 0)


@cache
def _agrees(level: str, s: Structure, dtype: str) -> bool:
    """Whether the compiled linear agrees with exact integers, or float64, for one token and for many."""
    on = level_named(level)
    generator = torch.Generator().manual_seed(0)
    rows = s.rows if s.bank else -(-s.rows // s.height)
    span = s.bank or -(-s.columns // s.width)
    picked = torch.rand(rows, s.banks or 1, span, generator=generator).topk(s.kept).indices.sort(-1).values
    coded = dtype == "int8"
    values = torch.randn(s.rows, s.values, generator=generator).to(getattr(torch, dtype))
    scale = None
    if coded:
        values = torch.randint(-127, 128, (s.rows, s.values), generator=generator).to(torch.int8)
        scale = torch.rand(s.rows, s.groups, generator=generator)
    packed = pack_structure(s, values, picked.flatten(1), scale, on)
    bias = torch.randn(s.rows, generator=generator)
    padded = torch.nn.functional.pad(bias, (0, -s.rows % s.panel(on)))
    weight = unpack_structure(s, packed, 0, level).double()
    for count in (1, on.lanes + 1):
        x = torch.randn(count, s.columns, generator=generator)
        x[0] = 3.0  # every activation at its extreme
        arrays = (packed.weights, packed.places, packed.start, packed.scale, padded)
        y = structureops.structured_linear(x, *arrays, s.ints(), 0, "none", level)
        if coded:
            q, peak = quantize_activations(x, s.columns, s.columns)
            x = q.double() * peak.double()
        wanted = activate(x.double() @ weight.T + bias, "none")
        if not bool((y - wanted).abs().max() <= _TOLERANCE * wanted.abs().max()):
            return False
    return True


def _trusted(level: Level | None, s: Structure, dtype: str) -> Level | None:
    """`level` if its kernel agrees here, else the next slower one that does, else None; warns on a mismatch."""
    while level is not None and s.refuse(dtype == "int8", level) is None:
        if _agrees(level.name, s, dtype):
            return level
        warnings.warn(f"the {level.name} kernel of kept blocks is wrong on this CPU; trying another", stacklevel=3)
        level = below(level)
    return None
