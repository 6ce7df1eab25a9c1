"""Recurrent layers: every matrix in the form of its own store, on the kernels of that form."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tersor.backends.numba.cells import Mode
from tersor.backends.numba.forms.form import Form, Target
from tersor.backends.numba.recurrent import QuantizedRecurrent
from tersor.backends.numba.recurrentcheck import trusted
from tersor.compiler.compressed import CompressedRecurrent, StoredWeight
from tersor.compiler.errors import CompilerBug, RequestError
from tersor.compiler.stores import Dense, Store

MODES: Mapping[str, Mode] = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}


def _held(leaf: CompressedRecurrent, name: str) -> StoredWeight | None:
    """The stored weight of this name; None for a plain one."""
    for held, module in leaf.stored.items():
        if held == name and isinstance(module, StoredWeight):
            return module
    return None


def _store(leaf: CompressedRecurrent, name: str) -> Store:
    held = _held(leaf, name)
    return Dense(leaf.plain[name].detach()) if held is None else held.store()


def _matrices(leaf: CompressedRecurrent) -> list[str]:
    return [name for name in leaf.order if name.startswith("weight_")]


def refuse_recurrent(leaf: CompressedRecurrent, forms: Mapping[str, Form]) -> str | None:
    """Why a recurrent layer has no kernel; None if it has. Looks at descriptions only."""
    for name in _matrices(leaf):
        if name.startswith("weight_hr"):
            return "no kernel for a projected state"
        held = _held(leaf, name)
        store = _store(leaf, name) if held is None else held.template
        form = forms.get(store.kind)
        reason = form.refuse(store) if form else f"no kernel for a store of kind {store.kind}"
        if reason is not None:
            return f"{name}: {reason}"
    return None


def recurrent(
    leaf: CompressedRecurrent, forms: Mapping[str, Form], target: Target, natives: Container[Any]
) -> QuantizedRecurrent:
    """The layer on kernels. RequestError where the values turn out to have none, or none of the classes `natives`.

    States that a tanh bounds have no outliers: one scale per row rounds them as well as many.
    """
    mode = MODES[leaf.mode]
    linears: list[nn.Module] = []
    for name in _matrices(leaf):
        store = _store(leaf, name)
        bounded = name.startswith("weight_hh") and mode != "rnn_relu"
        here = replace(target, activation_group=0) if bounded else target
        linear = forms[store.kind].linear(store, _bias(leaf, name), here)
        if type(linear) not in natives:
            raise RequestError(f"{name}: a {type(linear).__name__} cannot run inside a recurrence")
        linears.append(linear)
    if not trusted(mode, target.level.name):
        raise RequestError(f"the {target.level.name} kernel for {leaf.mode} disagrees with its reference on this CPU")
    return QuantizedRecurrent(mode, linears, leaf.hidden_size, leaf.bidirectional, leaf.batch_first, target.level.name)


def _bias(leaf: CompressedRecurrent, weight: str) -> Tensor | None:
    name = weight.replace("weight", "bias", 1)
    if name not in leaf.order:
        return None
    bias = _store(leaf, name).dense().detach().float()
    if bias.dim() != 1:
        raise CompilerBug(f"{name} has shape {tuple(bias.shape)}")
    return bias
