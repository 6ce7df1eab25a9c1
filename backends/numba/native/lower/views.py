"""Operators that only look at a tensor in another way, and shapes: no step, unless a copy is needed."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tersor.backends.numba.native.builder import Builder
from tersor.backends.numba.native.graph import Handler

aten = torch.ops.aten


def _size(_: Builder, __: Any, args: tuple[Any, ...], ___: Mapping[str, Any]) -> Any:
    value, dim = args
    return value.shape[dim]


def _item(_: Builder, __: Any, args: tuple[Any, ...], ___: Mapping[str, Any]) -> Any:
    return args[0][args[1]] if isinstance(args[0], Sequence) else NotImplemented


def _same(_: Builder, __: Any, args: tuple[Any, ...], ___: Mapping[str, Any]) -> Any:
    return args[0]


def _reshape(b: Builder, _: Any, args: tuple[Any, ...], __: Mapping[str, Any]) -> Any:
    value, shape = args
    view = value.viewed(tuple(shape))
    return b.dense(value).viewed(tuple(shape)) if view is None else view


def _transpose(_: Builder, __: Any, args: tuple[Any, ...], ___: Mapping[str, Any]) -> Any:
    value, one, other = args
    order = list(range(len(value.shape)))
    order[one], order[other] = order[other], order[one]
    return value.permuted(tuple(order))


def _permute(_: Builder, __: Any, args: tuple[Any, ...], ___: Mapping[str, Any]) -> Any:
    value, order = args
    return value.permuted(tuple(i % len(value.shape) for i in order))


def _unsqueeze(_: Builder, __: Any, args: tuple[Any, ...], ___: Mapping[str, Any]) -> Any:
    value, dim = args
    dim %= len(value.shape) + 1
    shape, stride = list(value.shape), list(value.stride)
    shape.insert(dim, 1)
    stride.insert(dim, 1)
    return replace(value, shape=tuple(shape), stride=tuple(stride))


def _squeeze(_: Builder, __: Any, args: tuple[Any, ...], ___: Mapping[str, Any]) -> Any:
    value, *given = args
    rank = len(value.shape)
    dims = range(rank) if not given else [given[0]] if isinstance(given[0], int) else given[0]
    dropped = {dim % rank for dim in dims if value.shape[dim] == 1} if rank else set()
    keep = [i for i in range(rank) if i not in dropped]
    return replace(value, shape=tuple(value.shape[i] for i in keep), stride=tuple(value.stride[i] for i in keep))


def _select(_: Builder, __: Any, args: tuple[Any, ...], ___: Mapping[str, Any]) -> Any:
    value, dim, index = args
    dim %= len(value.shape)
    part = value.narrowed(dim, index % value.shape[dim], 1)
    keep = [i for i in range(len(value.shape)) if i != dim]
    return replace(part, shape=tuple(part.shape[i] for i in keep), stride=tuple(part.stride[i] for i in keep))


def _slice(_: Builder, __: Any, args: tuple[Any, ...], ___: Mapping[str, Any]) -> Any:
    value, *given = args
    names = ("dim", "start", "end", "step")
    found = {"dim": 0, "start": None, "end": None, "step": 1} | dict(zip(names, given, strict=False))
    if found["step"] != 1:
        return NotImplemented
    dim = found["dim"] % len(value.shape)
    first, last, _step = slice(found["start"], found["end"]).indices(value.shape[dim])
    return value.narrowed(dim, first, max(last - first, 0))


def _split(_: Builder, __: Any, args: tuple[Any, ...], ___: Mapping[str, Any]) -> Any:
    value, sizes, *rest = args
    dim = (rest[0] if rest else 0) % len(value.shape)
    if isinstance(sizes, int):
        whole = value.shape[dim]
        sizes = [min(sizes, whole - i) for i in range(0, whole, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(value.narrowed(dim, start, size) for start, size in zip(starts, sizes, strict=True))


def _expand(_: Builder, __: Any, args: tuple[Any, ...], ___: Mapping[str, Any]) -> Any:
    value, wanted = args[0], tuple(args[1])
    lead = len(wanted) - len(value.shape)
    shape, stride = [], []
    for i, n in enumerate(wanted):
        old = 1 if i < lead else value.shape[i - lead]
        step = 0 if i < lead else value.stride[i - lead]
        shape.append(old if n == -1 else n)
        stride.append(step if shape[-1] == old else 0)
    return replace(value, shape=tuple(shape), stride=tuple(stride))


def _to(_: Builder, __: Any, args: tuple[Any, ...], ___: Mapping[str, Any]) -> Any:
    return args[0] if len(args) > 1 and args[1] is args[0].dtype else NotImplemented


HANDLERS: Mapping[Any, Handler] = {
    operator.getitem: _item,
    aten.sym_size.int: _size,
    aten.alias.default: _same,
    aten.detach.default: _same,
    nn.Dropout: lambda _, __, args, ___: args[0],
    nn.Identity: lambda _, __, args, ___: args[0],
    aten.reshape.default: _reshape,
    aten.view.default: _reshape,
    aten.transpose.int: _transpose,
    aten.permute.default: _permute,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.default: _squeeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.split_with_sizes.default: _split,
    aten.split.Tensor: _split,
    aten.expand.default: _expand,
    aten.to.dtype: _to,
}
