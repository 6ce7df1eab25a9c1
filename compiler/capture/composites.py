"""Linear layers and attention as functions of shapes: torch takes them apart only to learn the same, which is a third
of the time of a capture."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.compiler.shapes import Kernels

aten = torch.ops.aten


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty((*x.shape[:-1], *weight.shape[:-1]))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    p: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Says, as the whole computation does, which symbolic sizes are the same."""
    torch._check(key.shape[-2] == value.shape[-2])
    torch._check(query.shape[-1] == key.shape[-1])
    if enable_gqa:  # several heads of queries for each of the keys
        batch = query.shape[:-2]
        torch._check(query.shape[0] == key.shape[0])
    else:
        batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    scores = (*batch, query.shape[-2], key.shape[-2])
    if mask is not None:
        torch.broadcast_shapes(scores, mask.shape)
    return query.new_empty((*scores[:-1], value.shape[-1]))


COMPOSITES: Kernels = {aten.linear.default: _linear, aten.scaled_dot_product_attention.default: _attention}
