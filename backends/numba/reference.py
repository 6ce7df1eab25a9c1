"""What a quantised linear computes, in plain torch: integer sums are exact, then float64 scaling."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.backends.numba.elementwise import Activation
from tersor.backends.numba.layout import Layout


def quantize_activations(x: Tensor, span: int, padded: int) -> tuple[Tensor, Tensor]:
    """x (m, columns) float32 to q (m, padded) in -127..127 and scales (m, padded / span): max |x| / 127 over each
    span.
    """
    spans = F.pad(x, (0, padded - x.shape[1])).view(x.shape[0], padded // span, span)
    peak = spans.abs().amax(-1, keepdim=True)
    inverse = torch.where(peak > 0, 127.0 / peak, torch.zeros_like(peak))
    return (spans * inverse).round().reshape(x.shape[0], padded), (peak / 127.0).squeeze(-1)


def activate(y: Tensor, activation: Activation) -> Tensor:
    """The activation as torch has it."""
    if activation == "gelu_tanh":
        return F.gelu(y, approximate="tanh")
    if activation == "none":
        return y
    if activation == "relu":
        return F.relu(y)
    return F.silu(y) if activation == "silu" else F.gelu(y)


def reference_linear(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None, layout: Layout, activation: Activation
) -> Tensor:
    """x (m, columns), codes (rows, columns), scale and zero (rows, weight groups), bias (rows): float64 (m, rows)."""
    group = layout.group
    q, a = quantize_activations(x.float(), layout.activation_span, layout.padded)
    a = a.double().repeat_interleave(layout.activation_span // group, dim=1)  # (m, groups)
    q = q.to(torch.int64).view(len(x), layout.groups, group)
    padded = F.pad(codes.to(torch.int64), (0, layout.padded - layout.columns)).view(layout.rows, layout.groups, group)
    products = torch.einsum("mgk,ngk->mng", q, padded).double()
    repeat = (layout.weight_group or layout.padded) // group

    def spread(values: Tensor) -> Tensor:
        return values.double().repeat_interleave(repeat, dim=1)[:, : layout.groups]

    centred = products - q.sum(-1).double()[:, None] * spread(zero)
    y = torch.einsum("mng,mg,ng->mn", centred, a, spread(scale))
    return activate(y if bias is None else y + bias.double(), activation)
