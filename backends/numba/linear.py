"""A linear over packed codes."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.backends.numba.elementwise import ACTIVATIONS, Activation
from tersor.backends.numba.features import detect, level_named
from tersor.backends.numba.layout import Layout, dense, pack_bias, pack_codes, pack_groups, width_of
from tersor.backends.numba.reference import activate
from tersor.backends.numba.selfcheck import trusted_level
from tersor.compiler.errors import RequestError

DEFAULT_ACTIVATION_GROUP = 64


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
        self._constants = (
            layout.rows, layout.columns, layout.width, layout.weight_group, layout.activation_group, activation, level,
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
        activation_group: int = DEFAULT_ACTIVATION_GROUP,
        group: int = 0,
        level: str | None = None,
    ) -> QuantizedLinear:
        """Pack codes (n, k) uint8 below 2^bits, scale and zero (n, groups), bias (n).

        `group` columns share a scale, 0 for the whole row. `level` asks for a CPU level (default: `features.detect`).
        RequestError for shapes, codes or groups that have no kernel.
        """
        layout, shift = _checked(codes, scale, zero, bits, bias, activation, activation_group, group)
        trusted = trusted_level(detect(level), layout, activation)
        if trusted is None:
            warnings.warn(
                "no compiled kernel can be trusted on this CPU; quantised linears run on dense weights", stacklevel=2
            )
        packing = trusted or level_named("generic")
        return cls(
            layout,
            trusted.name if trusted else None,
            activation,
            pack_codes(codes, layout, packing),
            pack_groups(scale.float(), layout, packing),
            None if shift is None else pack_groups(shift, layout, packing),
            pack_bias(bias, layout, packing),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.level is None:
            weight = self.dense().to(x.dtype)
            return activate(F.linear(x, weight, self.bias[: self.layout.rows].to(x.dtype)), self.activation)
        y: Tensor = torch.ops.tersor.quantized_linear(
            x, self.codes, self.scale, self.shift, self.bias, *self._constants
        )
        return y

    def dense(self) -> Tensor:
        """w (n, k) float32."""
        return dense(self.codes, self.scale, self.shift, self.layout, level_named(self.level or "generic"))

    def extra_repr(self) -> str:
        layout = self.layout
        return (
            f"in_features={layout.columns}, out_features={layout.rows}, width={layout.width}, group={layout.weight_group}, "
            f"activation_group={layout.activation_group}, activation={self.activation}, level={self.level}"
        )


def _checked(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    bits: int,
    bias: Tensor | None,
    activation: str,
    activation_group: int,
    group: int,
) -> tuple[Layout, Tensor | None]:
    """The layout and the shift of codes that a kernel can hold, RequestError otherwise."""
    if codes.dim() != 2 or codes.dtype != torch.uint8:
        raise RequestError(f"codes are a uint8 matrix, not {codes.dtype} of shape {tuple(codes.shape)}")
    rows, columns = codes.shape
    if activation not in ACTIVATIONS:
        raise RequestError(f"no activation {activation!r}; use one of: {', '.join(ACTIVATIONS)}")
    width = width_of(bits)
    center = 1 << (width - 1)
    zero = zero.float()
    shifted = bool((zero != center).any())
    layout = Layout(rows, columns, width, group, activation_group, shifted)
    groups = -(-columns // group) if group else 1
    for name, values in (("scale", scale), ("zero", zero)):
        if tuple(values.shape) != (rows, groups):
            raise RequestError(
                f"{name} has shape {tuple(values.shape)}; {rows} rows of {groups} groups need {(rows, groups)}"
            )
    if bias is not None and tuple(bias.shape) != (rows,):
        raise RequestError(f"bias has shape {tuple(bias.shape)}; {rows} outputs need {(rows,)}")
    if codes.numel() and int(codes.max()) >= 1 << bits:
        raise RequestError(f"a code is {int(codes.max())}; {bits} bits go to {(1 << bits) - 1}")
    return layout, scale.float() * (center - zero) if shifted else None
