"""What a recurrent layer over codes must compute, written with numpy in float64 and apart from the code under test.

States are rounded to 8 bits in every step, so that a difference in the last bit of one may become a whole level in the
next. The oracle therefore goes step by step and takes the state that a step starts from out of the output under test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from kernel_oracle import FASTEST, Matrix, expected, narrowed, random_matrix
from torch import Tensor, fx, nn

from tersor.backends.numba.cells import GATES, Mode
from tersor.backends.numba.native.graph import NativeGraph
from tersor.backends.numba.native.lower import HANDLERS
from tersor.backends.numba.recurrent import QuantizedRecurrent


@dataclass(frozen=True)
class Layer:
    """One layer: W_ih and W_hh of each direction, and the columns that share an activation scale (0: the row)."""

    mode: Mode
    hidden: int
    matrices: tuple[tuple[Matrix, Matrix], ...]
    activation_group: int

    def module(self, batch_first: bool = True, level: str = FASTEST) -> QuantizedRecurrent:
        linears = [
            matrix.module(activation_group=self.activation_group, level=level)
            for pair in self.matrices
            for matrix in pair
        ]
        return QuantizedRecurrent(self.mode, linears, self.hidden, len(self.matrices) == 2, batch_first, level)


def random_layer(
    mode: Mode, inputs: int, hidden: int, bits: int = 8, group: int = 0, activation_group: int = 0,
    directions: int = 1, seed: int = 0, room: int = 0,
) -> Layer:  # fmt: skip
    rows = GATES[mode] * hidden

    def drawn(columns: int, seed: int) -> Matrix:
        matrix = random_matrix(rows, columns, bits, group, shifted=not room, seed=seed)
        return narrowed(matrix, room) if room else matrix

    pairs = [(drawn(inputs, seed + 10 * d), drawn(hidden, seed + 10 * d + 5)) for d in range(directions)]
    return Layer(mode, hidden, tuple(pairs), activation_group)


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))


def cell(mode: Mode, u: np.ndarray, z: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The new (h, c), from the equations in the documentation of torch."""
    if mode == "lstm":
        i, f, g, o = np.split(u + z, 4, axis=-1)
        c = logistic(f) * c + logistic(i) * np.tanh(g)
        return logistic(o) * np.tanh(c), c
    if mode == "gru":
        (u_r, u_t, u_n), (z_r, z_t, z_n) = np.split(u, 3, axis=-1), np.split(z, 3, axis=-1)
        share = logistic(u_t + z_t)
        return (1 - share) * np.tanh(u_n + logistic(u_r + z_r) * z_n) + share * h, c
    return np.tanh(u + z) if mode == "rnn_tanh" else np.maximum(u + z, 0), c


def largest_error(
    layer: Layer, x: Tensor, h: Tensor, c: Tensor, y: Tensor, h_last: Tensor, c_last: Tensor | None
) -> float:
    """Largest difference of y (batch, time, directions * hidden) from one exact step each, and of the last states,
    relative to the largest product of that step if it is above 1.

    c runs along in float64: its own error only shrinks from step to step, as no gate is above 1.
    """
    worst, scale = 0.0, 1.0

    def compare(actual: Tensor, wanted: np.ndarray) -> None:
        nonlocal worst
        worst = max(worst, float(np.abs(actual.double().numpy() - wanted).max(initial=0)) / scale)

    for direction, (into, state) in enumerate(layer.matrices):
        part = y[..., direction * layer.hidden : (direction + 1) * layer.hidden]
        before, memory = h[direction], c[direction].double().numpy()
        times = range(x.shape[1])
        for time in reversed(times) if direction else times:
            u = expected(into, x[:, time], layer.activation_group)
            z = expected(state, before, layer.activation_group)
            scale = max(scale if layer.mode == "lstm" else 1.0, float(np.abs(u).max()), float(np.abs(z).max()))
            wanted, memory = cell(layer.mode, u, z, before.double().numpy(), memory)
            compare(part[:, time], wanted)
            before = part[:, time]
        assert torch.equal(h_last[direction], before)
        if c_last is not None:
            compare(c_last[direction], memory)
    return worst


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, QuantizedRecurrent)


class _Calls(nn.Module):
    def __init__(self, layer: QuantizedRecurrent) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        if self.layer.mode == "lstm":
            y, (h, c) = self.layer(x, (h, c))
            return y, h, c
        return self.layer(x, h)


def native(layer: QuantizedRecurrent) -> NativeGraph:
    """The layer as a native program of x, h and c: (y, h) or (y, h, c)."""
    calls = _Calls(layer)
    return NativeGraph(fx.GraphModule(calls, _Tracer().trace(calls)).eval(), HANDLERS, layer.level)
