"""A linear over codes into at most 16 levels, which are looked up on the way to the dot product."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.backends.numba import lookupops
from tersor.backends.numba.elementwise import Activation
from tersor.backends.numba.features import Level, below, detect, level_named
from tersor.backends.numba.layout import Layout, pack_bias, pack_codes, pack_groups, width_of
from tersor.backends.numba.lookupops import CENTER, input_layout, unpack_levels
from tersor.backends.numba.microkernels import packed_rows
from tersor.backends.numba.ops import direct
from tersor.backends.numba.reference import reference_linear
from tersor.compiler.errors import RequestError

_TOLERANCE = 1e-5  # of the largest value: a few floating operations a group


def round_levels(levels: Tensor) -> tuple[Tensor, float]:
    """Levels as unsigned bytes around CENTER, and the scale: |scale (byte - CENTER) - level| <= scale / 2, where the
    scale is 1/127 of the largest.
    """
    scale = float(levels.abs().max()) / 127 if levels.numel() else 0.0
    steps = levels / scale if scale > 0 else torch.zeros_like(levels)
    return (steps.round() + CENTER).to(torch.uint8), scale


class LookupLinear(nn.Module):
    """y = activation(q(x) @ w^T + bias) with w[n, k] = scale (levels[code[n, k]] - 128).

    x (..., columns) of any floating type, rounded to 8 bits as `QuantizedLinear` does; levels are bytes. Codes stay
    packed, 2 or 4 bits each.
    """

    codes: Tensor
    levels: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, layout: Layout, level: str, activation: Activation, *arrays: Tensor) -> None:
        super().__init__()
        self.layout, self.level = layout, level
        self.activation: Activation = activation
        for name, array in zip(("codes", "levels", "scale", "bias"), arrays, strict=True):
            self.register_buffer(name, array)
        shape = (layout.rows, layout.columns, layout.width, layout.activation_group)
        self._constants: Any = (*shape, activation, level)

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        levels: Tensor,
        scale: float,
        bias: Tensor | None = None,
        activation_group: int = 0,
        level: str | None = None,
    ) -> LookupLinear:
        """Pack codes (n, k) uint8 into at most 16 levels (bytes around 128), and bias (n).

        RequestError where the shapes have no kernel or no kernel can be trusted.
        """
        if codes.dim() != 2 or not 1 <= levels.numel() <= 16:
            raise RequestError(f"codes of shape {tuple(codes.shape)} into {levels.numel()} levels have no kernel")
        rows, columns = codes.shape
        if bias is not None and tuple(bias.shape) != (rows,):
            raise RequestError(f"bias has shape {tuple(bias.shape)}; {rows} outputs need {(rows,)}")
        layout = Layout(rows, columns, width_of(max(1, (levels.numel() - 1).bit_length())), 0, activation_group)
        trusted = _trusted(detect(level), layout.width, activation_group)
        if trusted is None:
            raise RequestError("no kernel that looks codes up can be trusted on this CPU")
        scales = pack_groups(torch.full((rows, 1), scale), layout, trusted)
        padded = pack_bias(None if bias is None else bias.detach().float(), layout, trusted)
        arrays = (pack_codes(codes, layout, trusted), repeated(levels), scales, padded)
        return cls(layout, trusted.name, "none", *arrays)

    def forward(self, x: Tensor) -> Tensor:
        run = lookupops.lookup_linear if direct(x) else lookupops.linear
        y: Tensor = run(x, self.codes, self.levels, self.scale, self.bias, *self._constants)
        return y

    def dense(self) -> Tensor:
        """w (n, k) float32."""
        return unpack_levels(self.codes, self.levels, self.scale, self.layout, self.level)

    def with_activation(self, activation: Activation) -> LookupLinear | None:
        """The same linear with an activation after it."""
        return LookupLinear(self.layout, self.level, activation, self.codes, self.levels, self.scale, self.bias)

    def extra_repr(self) -> str:
        layout = self.layout
        return (
            f"in_features={layout.columns}, out_features={layout.rows}, width={layout.width}, "
            f"activation_group={layout.activation_group}, activation={self.activation}, level={self.level}"
        )


def repeated(levels: Tensor) -> Tensor:
    """The 16 levels in every 128 bits of the widest vector."""
    return F.pad(levels, (0, 16 - levels.numel()), value=CENTER).repeat(4)


@cache
def _agrees(level: str, width: int, activation_group: int) -> bool:
    """Whether the compiled linear agrees with exact integers on a small matrix with every kind of edge."""
    on = level_named(level)
    generator = torch.Generator().manual_seed(0)
    layout = Layout(on.panel + 3, 2 * (activation_group or 32) + 5, width, 0, activation_group)
    shape = (layout.rows, layout.columns)
    codes = torch.randint(0, 1 << width, shape, dtype=torch.uint8, generator=generator)
    levels = torch.linspace(0, 255, 1 << width).round().to(torch.uint8)
    bias = torch.randn(layout.rows, generator=generator)
    scale = torch.full((layout.rows, 1), 0.5)
    arrays = (pack_codes(codes, layout, on), repeated(levels), pack_groups(scale, layout, on))
    rows = sum(on.row_tiles)
    for count in (1, 2, rows, packed_rows(on, width, looked_up=True) + rows):
        x = torch.randn(count, layout.columns, generator=generator)
        x[0] = 3.0  # every activation at its extreme
        padded = pack_bias(bias, layout, on)
        y = lookupops.lookup_linear(x, *arrays, padded, *shape, width, activation_group, "none", level)
        bytes_ = levels[codes.to(torch.int64)]
        zero = torch.full_like(scale, CENTER)
        wanted = reference_linear(x, bytes_, scale, zero, bias, input_layout(*shape, activation_group), "none")
        if not bool((y - wanted).abs().max() <= _TOLERANCE * wanted.abs().max()):
            return False
    return True


def _trusted(level: Level | None, width: int, activation_group: int) -> Level | None:
    """`level` if its kernel agrees here, else the next slower one that does, else None; warns on a mismatch. The
    generic level has no look-up.
    """
    while level is not None and level.name != "generic":
        if _agrees(level.name, width, activation_group):
            return level
        warnings.warn(f"the {level.name} kernel that looks codes up is wrong on this CPU; trying another", stacklevel=3)
        level = below(level)
    return None
