"""A recurrent layer step by step, in torch's functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tersor.backends.numba.cells import Mode


def over_time(
    mode: Mode, products: Tensor, linear: Callable[[Tensor], Tensor], h: Tensor, c: Tensor, backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y (time, batch, hidden) and the last (h, c) of one direction, from products W_ih x + b_ih (time, batch, gates *
    hidden) and the first h and c (batch, hidden); `linear` is W_hh h + b_hh.
    """
    length = products.shape[0]
    y: list[Tensor] = [h] * length
    for step in range(length):
        time = length - 1 - step if backward else step
        h, c = step_of(mode, products[time], linear(h), h, c)
        y[time] = h
    return torch.stack(y) if y else products.new_empty(0, *h.shape), h, c


def step_of(mode: Mode, u: Tensor, z: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The new (h, c) from the products of a cell: see `cells`. c is an LSTM's only."""
    if mode == "lstm":
        i, f, g, o = (u + z).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if mode == "gru":
        (u_r, u_t, u_n), (z_r, z_t, z_n) = u.chunk(3, -1), z.chunk(3, -1)
        n = (u_n + (u_r + z_r).sigmoid() * z_n).tanh()
        return n + (u_t + z_t).sigmoid() * (h - n), c
    return ((u + z).tanh() if mode == "rnn_tanh" else (u + z).relu()), c
