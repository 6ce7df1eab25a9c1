"""Recurrent layers with a symbolic length: while exporting, their ATen kernels only say shapes.

The kernels that torch runs on fake tensors unroll the recurrence, which turns the length into a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tersor.compiler.shapes import Kernels

aten = torch.ops.aten


def _outputs(x: Tensor, hidden: Tensor, bidirectional: bool) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], (2 if bidirectional else 1) * hidden.shape[-1]))


def _lstm(
    x: Tensor,
    hx: Sequence[Tensor],
    params: Any,
    biases: bool,
    layers: int,
    p: float,
    train: bool,
    bi: bool,
    first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(x, hx[0], bi), torch.empty_like(hx[0]), torch.empty_like(hx[1])


def _single_state(
    x: Tensor, hx: Tensor, params: Any, biases: bool, layers: int, p: float, train: bool, bi: bool, first: bool
) -> tuple[Tensor, Tensor]:
    return _outputs(x, hx, bi), torch.empty_like(hx)


RECURRENT: Kernels = {
    aten.lstm.input: _lstm,
    aten.gru.input: _single_state,
    aten.rnn_tanh.input: _single_state,
    aten.rnn_relu.input: _single_state,
}
