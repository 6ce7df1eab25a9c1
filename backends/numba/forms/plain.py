"""Linears and embeddings that no method touched: in floating point too, so that nothing leaves for torch."""

from __future__ import annotations

import torch
from torch import nn

from tersor.backends.numba.denselinear import DenseLinear
from tersor.backends.numba.forms.dense import dense_embedding
from tersor.backends.numba.forms.form import Target


def plain_kernel(leaf: nn.Module, target: Target) -> nn.Module | None:
    """The kernel for an ordinary layer; None for what is no float32 linear or table on the CPU."""
    if type(leaf) not in (nn.Linear, nn.Embedding) or not isinstance(leaf, nn.Linear | nn.Embedding):
        return None
    weight = leaf.weight.detach()
    if weight.dtype is not torch.float32 or not weight.is_cpu or 0 in weight.shape:
        return None
    if isinstance(leaf, nn.Embedding):
        return None if leaf.max_norm is not None else dense_embedding(weight, target)
    bias = None if leaf.bias is None else leaf.bias.detach()
    return DenseLinear.from_weight(weight, bias, "none", target.level.name)
