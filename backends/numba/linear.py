"""A linear over packed codes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.backends.numba import ops
from tersor.backends.numba.elementwise import ACTIVATIONS, Activation
from tersor.backends.numba.features import detect, level_named
from tersor.backends.numba.layout import (
    AffineCodes,
    Layout,
    dense,
    kernel_bits,
    pack_bias,
    pack_codes,
    pack_groups,
    pack_shift,
    room_for,
)
from tersor.backends.numba.reference import activate
from tersor.backends.numba.selfcheck import agrees, trusted_level
from tersor.compiler.errors import RequestError
from tersor.compiler.stores.affine import INPUT_GROUP


class QuantizedLinear(nn.Module):
    """y = activation(q(x) @ w^T + bias) with w[n, k] = scale[n, g] (code[n, k] - zero[n, g]).

    x (..., columns) of any floating type; q(x) rounds it to 8 bits symmetrically, with one scale per
    `activation_group` columns of a row (0: per row). Holds the packed tensors only. Where no compiled kernel can be
    trusted (`level` is None) it computes with the dense matrix and unrounded activations.
    """

    codes: Tensor
    scale: Tensor
    shift: Tensor | None
    bias: Tensor

    def __init__(
        self,
        layout: Layout,
        level: str | None,
        activation: Activation,
        codes: Tensor,
        scale: Tensor,
        shift: Tensor | None,
        bias: Tensor,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.level = level
        self.activation: Activation = activation
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.register_buffer("bias", bias)
        self._constants: Any = (
            layout.rows, layout.columns, layout.bits, layout.room, layout.weight_group, layout.activation_group,
            activation, level,
        )  # fmt: skip

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor,
        bits: int,
        bias: Tensor | None = None,
        activation: Activation = "none",
        activation_group: int = INPUT_GROUP,
        group: int = 0,
        level: str | None = None,
    ) -> QuantizedLinear:
        """Pack codes (n, k) uint8 below 2^bits, scale and zero (n, groups), bias (n).

        `group` columns share a scale, 0 for the whole row. `level` asks for a CPU level (default: `features.detect`).
        RequestError for shapes, codes or groups that have no kernel.
        """
        wanted = detect(level)
        held = AffineCodes(codes, scale, zero, bits, group).centred(kernel_bits(bits, wanted))
        if activation not in ACTIVATIONS:
            raise RequestError(f"no activation {activation!r}; use one of: {', '.join(ACTIVATIONS)}")
        if bias is not None and tuple(bias.shape) != (held.rows,):
            raise RequestError(f"bias has shape {tuple(bias.shape)}; {held.rows} outputs need {(held.rows,)}")
        layout = Layout(held.rows, held.columns, held.bits, group, activation_group, held.shifted)
        narrow = replace(layout, room=room_for(held, wanted))
        if narrow.room and agrees(wanted, narrow, activation):
            layout = narrow
        trusted = trusted_level(wanted, layout, activation)
        if trusted is None:
            warnings.warn(
                "no compiled kernel can be trusted on this CPU; quantised linears run on dense weights", stacklevel=2
            )
        packing = trusted or level_named("generic")
        return cls(
            layout,
            trusted.name if trusted else None,
            activation,
            pack_codes(held.codes, layout, packing),
            pack_groups(held.scale, layout, packing),
            pack_shift(held, layout, packing),
            pack_bias(bias, layout, packing),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.level is None:
            weight = self.dense().to(x.dtype)
            return activate(F.linear(x, weight, self.bias[: self.layout.rows].to(x.dtype)), self.activation)
        run = ops.quantized_linear if ops.direct(x) else ops.linear
        y: Tensor = run(x, self.codes, self.scale, self.shift, self.bias, *self._constants)
        return y

    def dense(self) -> Tensor:
        """w (n, k) float32."""
        return dense(self.codes, self.scale, self.shift, self.layout, level_named(self.level or "generic"))

    def with_activation(self, activation: Activation) -> QuantizedLinear | None:
        """The same linear with an activation after it; None where that kernel cannot be trusted at this level."""
        if self.level is None:
            return None
        if not agrees(level_named(self.level), self.layout, activation):
            return None
        return QuantizedLinear(self.layout, self.level, activation, self.codes, self.scale, self.shift, self.bias)

    def merge_key(self) -> tuple[object, ...]:
        """Linears with equal keys can be `joined`."""
        layout = self.layout
        grouping = (layout.columns, layout.bits, layout.weight_group, layout.activation_group)
        return (*grouping, layout.shifted, layout.room, self.activation, self.level)

    @staticmethod
    def joined(linears: Sequence[QuantizedLinear]) -> QuantizedLinear | None:
        """One linear whose outputs are those of all, in order; None unless each fills whole panels but the last."""
        first = linears[0]
        if first.level is None:
            return None
        panel = level_named(first.level).panel
        if any(linear.layout.rows % panel for linear in linears[:-1]):
            return None
        layout = replace(first.layout, rows=sum(linear.layout.rows for linear in linears))
        shifts = [linear.shift for linear in linears if linear.shift is not None]
        return QuantizedLinear(
            layout,
            first.level,
            first.activation,
            torch.cat([linear.codes for linear in linears]),
            torch.cat([linear.scale for linear in linears]),
            torch.cat(shifts) if shifts else None,
            torch.cat([linear.bias for linear in linears]),
        )

    def extra_repr(self) -> str:
        layout = self.layout
        return (
            f"in_features={layout.columns}, out_features={layout.rows}, bits={layout.bits}, "
            f"group={layout.weight_group}, activation_group={layout.activation_group}, "
            f"activation={self.activation}, level={self.level}"
        )
