"""Recurrent layers: every matrix in the form of its own store, on the kernels of that form."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tersor.backends.numba.cells import Mode
from tersor.backends.numba.forms.form import Form, Target
from tersor.backends.numba.recurrent import QuantizedRecurrent
from tersor.backends.numba.recurrentcheck import trusted
from tersor.compiler.compressed import CompressedRecurrent, StoredWeight
from tersor.compiler.errors import RequestError
from tersor.compiler.stores import Dense, Store

MODES: Mapping[str, Mode] = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}

Layer = CompressedRecurrent | nn.RNNBase


def _stores(leaf: Layer) -> dict[str, Store]:
    """The stores of all weights by name, in torch's order; plain ones stand for themselves."""
    if isinstance(leaf, nn.RNNBase):
        return {name: Dense(getattr(leaf, name).detach()) for names in leaf._all_weights for name in names}
    held = {name: part.store() for name, part in leaf.stored.items() if isinstance(part, StoredWeight)}
    return {name: held[name] if name in held else Dense(leaf.plain[name].detach()) for name in leaf.order}


def refuse_recurrent(leaf: Layer, forms: Mapping[str, Form]) -> str | None:
    """Why a recurrent layer has no kernel; None if it has."""
    for name, store in _stores(leaf).items():
        if name.startswith("weight_hr"):
            return "no kernel for a projected state"
        form = forms.get(store.kind)
        reason = form.refuse(store) if form else f"no kernel for a store of kind {store.kind}"
        if reason is not None and name.startswith("weight_"):
            return f"{name}: {reason}"
    return None


def recurrent(leaf: Layer, forms: Mapping[str, Form], target: Target, natives: Container[Any]) -> QuantizedRecurrent:
    """The layer on kernels. RequestError where the values turn out to have none, or none of the classes `natives`.

    States that a tanh bounds have no outliers: one scale per row rounds them as well as many.
    """
    mode, level = MODES[leaf.mode], target.level.name
    stores = _stores(leaf)
    linears: list[nn.Module] = []
    for name in stores:
        if not name.startswith("weight_"):
            continue
        bounded = name.startswith("weight_hh") and mode != "rnn_relu"
        here = replace(target, activation_group=0) if bounded else target
        linear = forms[stores[name].kind].linear(stores[name], _bias(stores, name), here)
        if type(linear) not in natives:
            raise RequestError(f"{name}: a {type(linear).__name__} cannot run inside a recurrence")
        linears.append(linear)
    if not trusted(mode, level):
        raise RequestError(f"the {level} kernel of this recurrence disagrees with its reference on this CPU")
    return QuantizedRecurrent(mode, linears, leaf.hidden_size, leaf.bidirectional, leaf.batch_first, level)


def _bias(stores: Mapping[str, Store], weight: str) -> Tensor | None:
    store = stores.get(weight.replace("weight", "bias", 1))
    return None if store is None else store.dense().detach().float()


def plain_recurrent(
    leaf: nn.Module, forms: Mapping[str, Form], target: Target, natives: Container[Any]
) -> QuantizedRecurrent | None:
    """The kernel for an ordinary recurrent layer; None for what is none in float32 on the CPU."""
    if type(leaf) not in (nn.LSTM, nn.GRU, nn.RNN) or not isinstance(leaf, nn.RNNBase):
        return None
    weights = list(leaf.parameters())
    fits = all(w.dtype is torch.float32 and w.is_cpu for w in weights) and refuse_recurrent(leaf, forms) is None
    return recurrent(leaf, forms, target, natives) if fits and trusted(MODES[leaf.mode], target.level.name) else None
