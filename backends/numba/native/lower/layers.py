"""Linears and normalisations as steps."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import nn

from tersor.backends.numba.decodermodules import RootNorm
from tersor.backends.numba.features import level_named
from tersor.backends.numba.fusedsteps import (
    multiply_round_step,
    needs_total,
    norm_round_step,
    rounds_itself,
    rounds_whole,
    total_step,
)
from tersor.backends.numba.layout import Layout
from tersor.backends.numba.linear import QuantizedLinear
from tersor.backends.numba.native.builder import Builder
from tersor.backends.numba.native.graph import Handler
from tersor.backends.numba.native.values import Operand, Value
from tersor.backends.numba.norm import AddLayerNorm, Parameters, SumNorm, parameters
from tersor.backends.numba.steps import Norm, multiply_step, norm_step


def _linear(b: Builder, module: Any, args: tuple[Any, ...], _: Mapping[str, Any]) -> Any:
    linear: QuantizedLinear = module
    (x,) = args
    if linear.level != b.level or x.dtype is not torch.float32 or not x.numel:
        return NotImplemented
    x = b.dense(x)
    layout = linear.layout
    rounded = b.rounded(x, layout)
    shift = 0 if linear.shift is None else b.keep(linear.shift)
    weights = (b.keep(linear.codes), b.keep(linear.scale), shift, b.keep(linear.bias))
    y = b.new((*x.shape[:-1], layout.rows))
    rows = x.numel // layout.columns
    operands = ((rounded.q, rounded.records), weights)
    reader = _sole_linear(b)
    if reader is not None and rounds_itself(b.level, layout, reader):
        places = b.will_round(y, reader)
        result = (places.q, places.records)
        b.step(multiply_round_step(b.level, layout, reader, linear.activation, rows, *operands, result))
        if needs_total(reader):
            b.step(total_step(b.level, reader, rows, places.records))
    else:
        b.step(multiply_step(b.level, layout, linear.activation, rows, *operands, y.ref, resident=b.resident))
    return y


def _linears(b: Builder) -> list[Layout]:
    """The layouts of the linears among the readers."""
    return [r.layout for r in b.readers if isinstance(r, QuantizedLinear) and r.level == b.level]


def _sole_linear(b: Builder) -> Layout | None:
    found = _linears(b)
    return found[0] if len(found) == len(b.readers) == 1 else None


def _norm(b: Builder, x: Value, other: Value | None, given: Parameters, keeps: bool = False) -> Any:
    """norm(z) with z = x + other, if there is another, or (z, norm(z)) if it `keeps` z."""
    weight, bias, epsilon = given
    columns = x.shape[-1]
    fits = columns % level_named(b.level).lanes == 0 and x.dtype is torch.float32 and weight.dtype is torch.float32
    if not fits or not x.numel:
        return NotImplemented
    second: Operand = 0
    period = 1
    if other is not None:
        if other.dtype is not torch.float32:
            return NotImplemented
        if other.numel > x.numel:
            x, other = other, x
        period = _repeats(x.shape, other)
        if not period:
            return NotImplemented
        second = b.dense(other).ref
    x = b.dense(x)
    y = b.new(x.shape)
    z = b.new(x.shape) if keeps else y
    shape, weights = (prod(x.shape[:-1]), columns), (b.keep(weight), 0 if bias is None else b.keep(bias))
    norm = Norm(shape, x.ref, second, period, *weights, z.ref, y.ref, epsilon, bias is None)
    reader = next((r for r in _linears(b) if r.columns == columns and rounds_whole(r)), None)
    if reader is None or shape[0] < level_named(b.level).lanes:  # it rounds as many rows at once
        b.step(norm_step(b.level, norm))
    else:
        places = b.will_round(y, reader)
        b.step(norm_round_step(b.level, norm, reader, (places.q, places.records)))
    return (z, y) if keeps else y


def _repeats(shape: tuple[int, ...], other: Value) -> int:
    """Rows after which `other`, broadcast to `shape`, begins again; 0 if it does not go round like that."""
    own = other.shape
    while own and own[0] == 1 and len(own) > 1:
        own = own[1:]
    return prod(own[:-1]) if own == shape[len(shape) - len(own) :] else 0


def _add_norm(b: Builder, module: Any, args: tuple[Any, ...], _: Mapping[str, Any]) -> Any:
    norm: AddLayerNorm = module
    x, other = (b.value(x) for x in args)
    return _norm(b, x, other, (norm.weight, norm.bias, norm.epsilon))


def _plain_norm(b: Builder, module: Any, args: tuple[Any, ...], _: Mapping[str, Any]) -> Any:
    found = parameters(module)
    return NotImplemented if found is None else _norm(b, args[0], None, found)


def _sum_norm(b: Builder, module: Any, args: tuple[Any, ...], _: Mapping[str, Any]) -> Any:
    found = parameters(module.norm)
    x, other = (b.value(x) for x in args)
    return NotImplemented if found is None else _norm(b, x, other, found, keeps=True)


HANDLERS: Mapping[Any, Handler] = {
    QuantizedLinear: _linear,
    AddLayerNorm: _add_norm,
    SumNorm: _sum_norm,
    nn.LayerNorm: _plain_norm,
    RootNorm: _plain_norm,
}
