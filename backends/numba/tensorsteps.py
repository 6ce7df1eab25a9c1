"""Steps over strided tensors: copies and elementwise functions."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch

from tersor.backends.numba.build import binary_kernel, copy_kernel, unary_kernel
from tersor.backends.numba.elementwise import Binary, Unary
from tersor.backends.numba.native.values import Operand, Value
from tersor.backends.numba.steps import Step

_BLOCK = 4096  # floats of an elementwise block


def copy_step(level: str, source: Value, target: Value) -> Step | None:
    """Copy float32 into a dense tensor; None for another type, or more than four dimensions (neighbours that step
    evenly count as one).
    """
    sizes, strides = _merged(source)
    if len(sizes) > 4 or source.dtype is not torch.float32:
        return None
    sizes, strides = [1] * (4 - len(sizes)) + sizes, [0] * (4 - len(strides)) + strides
    rows = (sizes[2], 4 * strides[2], sizes[1], 4 * strides[1], 4 * strides[0])
    operands = (target.ref, source.ref, sizes[3], 4 * strides[3], *rows)
    units = source.numel // sizes[3] if sizes[3] else 0
    return Step("copy", copy_kernel(level), operands, units, 0.4 * sizes[3])


def _merged(value: Value) -> tuple[list[int], list[int]]:
    """Sizes and strides with neighbouring dimensions taken together where they step evenly."""
    sizes: list[int] = []
    strides: list[int] = []
    for n, stride in zip(value.shape, value.stride, strict=True):
        if n == 1:
            continue
        if sizes and strides[-1] == n * stride:
            sizes[-1], strides[-1] = sizes[-1] * n, stride
        else:
            sizes.append(n)
            strides.append(stride)
    return sizes or [1], strides or [1]


def unary_step(level: str, function: Unary, x: Value, y: Value) -> Step:
    """y = f(x), both dense and of one size."""
    units = -(-x.numel // _BLOCK)
    return Step(function, unary_kernel(level, function), (y.ref, x.ref, x.numel, _BLOCK), units, 0.4 * _BLOCK)


def broadcast(value: Value, shape: tuple[int, ...]) -> Value:
    """The value repeated to `shape`, without a copy."""
    lead = len(shape) - len(value.shape)
    sizes, strides = (1,) * lead + value.shape, (0,) * lead + value.stride
    stride = tuple(s if n == wanted else 0 for n, s, wanted in zip(sizes, strides, shape, strict=True))
    return replace(value, shape=shape, stride=stride)


def binary_step(level: str, function: Binary, x: Value, y: Value, z: Value) -> Step | None:
    """z = f(x, y), x and y of the shape of z, with strides; z dense. None if they go round in too many ways: rows of
    unit (or no) stride whose beginnings step evenly in three dimensions.
    """
    shape = z.shape or (1,)
    x, y = (replace(v, shape=shape, stride=v.stride or (0,)) for v in (x, y))
    columns = shape[-1]
    steps = [0 if columns == 1 else v.stride[-1] for v in (x, y)]
    if any(step not in (0, 1) for step in steps):
        return None
    dims: list[tuple[int, int, int]] = []  # size and strides, from the inner dimension outwards
    for n, left, right in zip(shape[-2::-1], x.stride[-2::-1], y.stride[-2::-1], strict=True):
        if n == 1:
            continue
        if dims and (left, right) == (dims[-1][0] * dims[-1][1], dims[-1][0] * dims[-1][2]):
            dims[-1] = (dims[-1][0] * n, *dims[-1][1:])
        else:
            dims.append((n, left, right))
    if len(dims) > 3:
        return None
    dims += [(1, 0, 0)] * (3 - len(dims))
    lefts, rights = ([4 * dim[i] for dim in dims] for i in (1, 2))
    operands: tuple[Operand, ...]
    operands = (z.ref, columns, dims[0][0], dims[1][0], x.ref, steps[0], *lefts, y.ref, steps[1], *rights)
    return Step(function, binary_kernel(level, function), operands, prod(shape[:-1]), 0.3 * columns)
