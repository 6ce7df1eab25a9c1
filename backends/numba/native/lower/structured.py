"""Linears over kept blocks or banks as steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tersor.backends.numba.native.builder import Builder
from tersor.backends.numba.native.graph import Handler
from tersor.backends.numba.native.values import Operand
from tersor.backends.numba.structurelinear import StructuredLinear
from tersor.backends.numba.structureops import input_layout, spread_bytes, structured_steps


def _structured(b: Builder, module: Any, args: tuple[Any, ...], _: Mapping[str, Any]) -> Any:
    linear: StructuredLinear = module
    (x,) = args
    if linear.level != b.level or x.dtype is not torch.float32 or not x.numel:
        return NotImplemented
    x = b.dense(x)
    s, coded = linear.structure, linear.weights.dtype is torch.int8
    count = x.numel // s.columns
    given: tuple[Operand, Operand] = (x.ref, 0)
    if coded:
        rounded = b.rounded(x, input_layout(s))
        given = (rounded.q, rounded.records)
    size = spread_bytes(s, coded, count, b.level)
    spread: Operand = b.new((size,), torch.uint8).ref if size else 0
    arrays = (linear.weights, linear.places, linear.start, linear.scale, linear.bias)
    addresses = tuple(b.keep(array) for array in arrays)
    y = b.new((*x.shape[:-1], s.rows))
    operands = (count, given, spread, addresses, y.ref)
    for step in structured_steps(b.level, s, linear.packed, linear.exponent, linear.activation, *operands):
        b.step(step)
    return y


HANDLERS: Mapping[Any, Handler] = {StructuredLinear: _structured}
