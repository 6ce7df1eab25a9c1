"""Linears in floating point, sparse or over looked-up codes, as steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tersor.backends.numba.denselinear import DenseLinear
from tersor.backends.numba.denseops import dense_step
from tersor.backends.numba.densepacking import dense_spec
from tersor.backends.numba.lookuplinear import LookupLinear
from tersor.backends.numba.lookupops import input_layout, lookup_step
from tersor.backends.numba.native.builder import Builder
from tersor.backends.numba.native.graph import Handler
from tersor.backends.numba.native.values import Operand, Value
from tersor.backends.numba.sparselinear import SparseLinear
from tersor.backends.numba.sparseops import sparse_steps, turned_bytes


def _given(b: Builder, level: str | None, args: tuple[Any, ...]) -> Value | None:
    """The dense input of a linear, None where torch has to compute it."""
    (x,) = args
    if level != b.level or x.dtype is not torch.float32 or not x.numel:
        return None
    return b.dense(x)


def _dense(b: Builder, module: Any, args: tuple[Any, ...], _: Mapping[str, Any]) -> Any:
    linear: DenseLinear = module
    x = _given(b, linear.level, args)
    if x is None:
        return NotImplemented
    y = b.new((*x.shape[:-1], linear.rows))
    shape, count = (linear.rows, linear.columns), x.numel // linear.columns
    weights = (b.keep(linear.weight), b.keep(linear.bias))
    operands = (count, (x.ref, 4 * linear.columns), weights, y.ref)
    b.step(dense_step(dense_spec(linear.weight, b.level), shape, linear.exponent, linear.activation, *operands))
    return y


def _sparse(b: Builder, module: Any, args: tuple[Any, ...], _: Mapping[str, Any]) -> Any:
    linear: SparseLinear = module
    x = _given(b, linear.level, args)
    if x is None:
        return NotImplemented
    y = b.new((*x.shape[:-1], linear.rows))
    shape, count = (linear.rows, linear.columns), x.numel // linear.columns
    size = turned_bytes(b.level, linear.columns, count)
    turned: Operand = b.new((size,), torch.uint8).ref if size else 0
    weights = (b.keep(linear.values), b.keep(linear.places), b.keep(linear.starts), b.keep(linear.bias))
    operands = (count, (x.ref, 4 * linear.columns), turned, weights, linear.values.numel(), y.ref)
    for step in sparse_steps(b.level, shape, linear.activation, *operands):
        b.step(step)
    return y


def _lookup(b: Builder, module: Any, args: tuple[Any, ...], _: Mapping[str, Any]) -> Any:
    linear: LookupLinear = module
    x = _given(b, linear.level, args)
    if x is None:
        return NotImplemented
    layout = linear.layout
    rounded = b.rounded(x, input_layout(layout.rows, layout.columns, layout.activation_group))
    weights = (b.keep(linear.codes), b.keep(linear.scale), b.keep(linear.levels), b.keep(linear.bias))
    y = b.new((*x.shape[:-1], layout.rows))
    operands = (x.numel // layout.columns, (rounded.q, rounded.records), weights, y.ref)
    b.step(lookup_step(b.level, layout, linear.activation, *operands, resident=b.resident))
    return y


HANDLERS: Mapping[Any, Handler] = {
    DenseLinear: _dense,
    SparseLinear: _sparse,
    LookupLinear: _lookup,
}
