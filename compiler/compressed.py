"""Leaf modules whose weights are stores: the reference way to run a compressed model, on any device, with gradients.

Floating arrays of a store (scales, tables, factors, kept values) are parameters and train; integer arrays are buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tersor.compiler.stores import Store


class StoredWeight(nn.Module):
    """The arrays of a store as parameters and buffers. Shared by every reader of a tied weight."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.template = store
        self.names = {name: name.replace(".", "_") or "values" for name in store.arrays()}
        for name, array in store.arrays().items():
            if array.dtype.is_floating_point:
                self.register_parameter(self.names[name], nn.Parameter(array.detach().clone()))
            else:
                self.register_buffer(self.names[name], array.detach().clone())

    def store(self) -> Store:
        """The store over the present arrays."""
        return self.template.bound({name: getattr(self, attribute) for name, attribute in self.names.items()})

    def assign(self, store: Store) -> None:
        """Take the values of another store of the same form."""
        for name, array in store.arrays().items():
            getattr(self, self.names[name]).data.copy_(array)

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.template.shape)

    def extra_repr(self) -> str:
        return f"{self.template.kind}, shape={tuple(self.template.shape)}"


class CompressedLinear(nn.Module):
    """y = x W^T + b: x (..., in), y (..., out)."""

    def __init__(self, weight: StoredWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.stored = weight
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """The dense weight it stands for."""
        return self.stored.store().dense()

    def forward(self, x: Tensor) -> Tensor:
        y = self.stored.store().apply(x)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class CompressedEmbedding(nn.Module):
    """rows W[index]: index of any shape, result (*index.shape, width)."""

    def __init__(self, weight: StoredWeight, padding_idx: int | None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.stored = weight
        self.padding_idx = padding_idx

    @property
    def weight(self) -> Tensor:
        """The dense table it stands for."""
        return self.stored.store().dense()

    def forward(self, index: Tensor) -> Tensor:
        return self.stored.store().rows(index)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class CompressedRecurrent(nn.Module):
    """An LSTM, GRU or plain RNN whose flat weights are stores or ordinary parameters, computed by torch's own layer."""

    def __init__(
        self, layer: nn.RNNBase, stored: Mapping[str, StoredWeight], plain: Mapping[str, nn.Parameter]
    ) -> None:
        super().__init__()
        self.mode, self.input_size, self.hidden_size = layer.mode, layer.input_size, layer.hidden_size
        self.num_layers, self.bias, self.batch_first = layer.num_layers, layer.bias, layer.batch_first
        self.dropout, self.bidirectional = float(layer.dropout), layer.bidirectional
        self.order: Sequence[str] = [name for names in layer._all_weights for name in names]
        self.stored = nn.ModuleDict(dict(stored))
        self.plain = nn.ParameterDict(dict(plain))

    def flat_weights(self) -> list[Tensor]:
        """The weights in torch's order."""
        return [self.plain[n] if n in self.plain else self._stored(n).store().dense() for n in self.order]

    def _stored(self, name: str) -> StoredWeight:
        weight = self.stored[name]
        if not isinstance(weight, StoredWeight):
            raise TypeError(f"{name} is not a stored weight")
        return weight

    def forward(self, x: Tensor, hx: Tensor | tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, object]:
        batch = x.shape[0] if self.batch_first else x.shape[1]
        layers = self.num_layers * (2 if self.bidirectional else 1)
        zeros = torch.zeros(layers, batch, self.hidden_size, dtype=x.dtype, device=x.device)
        weights = self.flat_weights()
        arguments = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional, self.batch_first)
        if self.mode == "LSTM":
            h0, c0 = (zeros, zeros) if hx is None else hx
            y, h, c = torch.lstm(x, (h0, c0), weights, *arguments)
            return y, (h, c)
        run = {"GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}[self.mode]
        return run(x, hx if isinstance(hx, Tensor) else zeros, weights, *arguments)

    def extra_repr(self) -> str:
        return f"{self.mode}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
