"""LSTM, GRU and plain recurrent layers over linears on kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from tersor.backends.numba.cells import GATES, Mode
from tersor.backends.numba.linear import QuantizedLinear
from tersor.backends.numba.recurrentops import exported
from tersor.backends.numba.recurrentstep import over_time
from tersor.compiler.errors import RequestError

States = Tensor | tuple[Tensor, Tensor]


class QuantizedRecurrent(nn.Module):
    """What torch's LSTM, GRU or RNN computes in inference (no dropout), its matrices being linears on kernels.

    (x, hx) -> (y, h), or (y, (h, c)) for an LSTM, with torch's shapes. `linears` are W_ih x + b_ih and W_hh h + b_hh of
    every layer and direction, in torch's order; each rounds its input as it would elsewhere.

    A native program runs all time steps in one kernel (see `native.lower.recurrent`). The module itself goes step by
    step through its linears and torch's functions: there gradients flow, straight through the rounding. An exported
    graph holds one operator for all steps where W_hh is in uniform codes, and else a loop of the example's length.
    """

    def __init__(
        self, mode: Mode, linears: Sequence[nn.Module], hidden: int, bidirectional: bool, batch_first: bool, level: str
    ) -> None:
        super().__init__()
        self.mode: Mode = mode
        self.linears = nn.ModuleList(linears)
        self.hidden, self.bidirectional, self.batch_first, self.level = hidden, bidirectional, batch_first, level
        self.directions = 2 if bidirectional else 1
        self.layers, rest = divmod(len(linears), 2 * self.directions)
        if rest or not self.layers:
            raise RequestError(f"{len(linears)} matrices do not make layers of {2 * self.directions}")

    @property
    def gates(self) -> int:
        """Gates of a cell: W_hh has gates * hidden rows."""
        return GATES[self.mode]

    def cells(self) -> Iterator[tuple[int, int, nn.Module, nn.Module]]:
        """(layer, direction, its linear of the input, its linear of the state)."""
        for cell in range(self.layers * self.directions):
            layer, direction = divmod(cell, self.directions)
            yield layer, direction, self.linears[2 * cell], self.linears[2 * cell + 1]

    def forward(self, x: Tensor, hx: States | None = None) -> tuple[Tensor, States]:
        if x.dim() != 3:
            raise RequestError(f"a recurrent layer was given an input of shape {tuple(x.shape)}, not of 3 dimensions")
        sequence = x.transpose(0, 1) if self.batch_first else x
        count, batch = self.layers * self.directions, sequence.shape[1]
        if hx is None:
            zeros = x.new_zeros(count, batch, self.hidden)
            hx = (zeros, zeros) if self.mode == "lstm" else zeros
        h_first, c_first = hx if isinstance(hx, tuple) else (hx, hx)
        for state in (h_first, c_first):
            if tuple(state.shape) != (count, batch, self.hidden):
                wanted = (count, batch, self.hidden)
                raise RequestError(f"a recurrent layer needs a state of shape {wanted}, not {tuple(state.shape)}")
        h_last, c_last = [], []
        outputs: list[Tensor] = []
        for layer, direction, into, linear in self.cells():
            cell = layer * self.directions + direction
            y, h, c = self._over_time(into(sequence), linear, h_first[cell], c_first[cell], bool(direction))
            outputs.append(y)
            h_last.append(h)
            c_last.append(c)
            if len(outputs) == self.directions:
                sequence = torch.cat(outputs, -1)
                outputs = []
        y = sequence.transpose(0, 1) if self.batch_first else sequence
        if self.mode == "lstm":
            return y, (torch.stack(h_last), torch.stack(c_last))
        return y, torch.stack(h_last)

    def _over_time(
        self, products: Tensor, linear: nn.Module, h: Tensor, c: Tensor, backward: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One direction of one layer: y (time, batch, hidden) and the last states, from W_ih x + b_ih."""
        if torch.compiler.is_exporting() and isinstance(linear, QuantizedLinear) and linear.level is not None:
            return exported(self.mode, products, linear, h, c, backward)
        return over_time(self.mode, products, linear, h, c, backward)

    def extra_repr(self) -> str:
        return f"{self.mode}, hidden={self.hidden}, layers={self.layers}, bidirectional={self.bidirectional}"
