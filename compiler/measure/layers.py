"""What the weights inside a recurrent operator are multiplied with, by running it one layer and direction at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = Tensor | tuple[Tensor, Tensor] | None


def recurrent_inputs(layer: nn.RNNBase, x: Tensor, hx: State = None) -> dict[str, Tensor]:
    """By attribute (`weight_ih_l0`, ...), the vectors each weight reads, (batch, tokens, in): the inputs of its layer
    for an input weight, the states before each step for a hidden one. As in eval mode, without dropout between
    layers."""
    directions = 2 if layer.bidirectional else 1
    x = x.detach() if layer.batch_first else x.detach().transpose(0, 1)
    zeros = x.new_zeros(layer.num_layers * directions, x.shape[0], layer.hidden_size)
    h0, c0 = (zeros, zeros) if hx is None else hx if isinstance(hx, tuple) else (hx, zeros)
    found: dict[str, Tensor] = {}
    for number in range(layer.num_layers):
        outputs = []
        for direction in range(directions):
            row, suffix = number * directions + direction, f"_l{number}" + ("_reverse" if direction else "")
            given = x.flip(1) if direction else x
            y = _run(layer, row, given, h0[row : row + 1].detach(), c0[row : row + 1].detach())
            found[f"weight_ih{suffix}"] = given
            found[f"weight_hh{suffix}"] = torch.cat([h0[row].detach().unsqueeze(1), y[:, :-1]], 1)
            outputs.append(y.flip(1) if direction else y)
        x = torch.cat(outputs, -1)
    return found


def _run(layer: nn.RNNBase, row: int, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
    """The outputs of one layer in one direction."""
    weights = [getattr(layer, name) for name in layer._all_weights[row]]
    with torch.no_grad():
        if layer.mode == "LSTM":
            y: Tensor = torch.lstm(x, (h, c), weights, layer.bias, 1, 0.0, False, False, True)[0]
            return y
        run = {"GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}[layer.mode]
        return run(x, h, weights, layer.bias, 1, 0.0, False, False, True)[0]
