"""Recurrent layers with a symbolic length: while exporting, their ATen kernels only say shapes.

The kernels that torch runs on fake tensors unroll the recurrence, which turns the length into a constant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

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


KERNELS: dict[Any, Callable[..., Any]] = {
    aten.lstm.input: _lstm,
    aten.gru.input: _single_state,
    aten.rnn_tanh.input: _single_state,
    aten.rnn_relu.input: _single_state,
}


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Swap the Python kernels of the recurrent operators for shape functions; restored on exit."""
    saved = {op: dict(op.py_kernels) for op in KERNELS}
    try:
        for op, kernel in KERNELS.items():
            for key in saved[op]:
                op.py_kernels[key] = kernel
            op._dispatch_cache.clear()
        yield
    finally:
        for op, kernels in saved.items():
            op.py_kernels.clear()
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()
