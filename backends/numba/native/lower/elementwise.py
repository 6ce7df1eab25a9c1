"""Elementwise operators as steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tersor.backends.numba.elementwise import Binary, Unary
from tersor.backends.numba.native.builder import Builder
from tersor.backends.numba.native.graph import Handler
from tersor.backends.numba.tensorsteps import binary_step, broadcast, unary_step

aten = torch.ops.aten


def _unary(function: Unary, b: Builder, _: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    x = args[0]
    if len(args) > 1 or kwargs or x.dtype is not torch.float32:
        return NotImplemented
    x = b.dense(x)
    y = b.new(x.shape)
    b.step(unary_step(b.level, function, x, y))
    return y


def _gelu(b: Builder, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    how = module.approximate if isinstance(module, nn.Module) else kwargs.get("approximate", "none")
    return _unary("gelu" if how == "none" else "gelu_tanh", b, module, args[:1], {})


def _binary(function: Binary, b: Builder, _: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if kwargs or len(args) != 2 or any(isinstance(x, bool | complex) for x in args):
        return NotImplemented
    x, y = (b.value(torch.tensor(float(v))) if isinstance(v, int | float) else b.value(v) for v in args)
    if x.dtype is not torch.float32 or y.dtype is not torch.float32:
        return NotImplemented
    shape = tuple(np.broadcast_shapes(x.shape, y.shape))
    z = b.new(shape)
    step = binary_step(b.level, function, broadcast(x, shape), broadcast(y, shape), z)
    if step is None:
        step = binary_step(b.level, function, broadcast(b.dense(x), shape), broadcast(b.dense(y), shape), z)
    if step is None:
        return NotImplemented
    b.step(step)
    return z


def _power(b: Builder, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """x^2; other powers are left to torch."""
    x, exponent = args
    if isinstance(x, Tensor) or exponent != 2:
        return NotImplemented
    return _binary("mul", b, target, (x, x), kwargs)


_UNARY: Mapping[Any, Unary] = {
    aten.relu.default: "relu",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
    aten.sigmoid.default: "sigmoid",
    aten.exp.default: "exp",
    aten.neg.default: "neg",
    aten.rsqrt.default: "rsqrt",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}
_BINARY: Mapping[Any, Binary] = {
    aten.add.Tensor: "add",
    aten.sub.Tensor: "sub",
    aten.mul.Tensor: "mul",
    aten.div.Tensor: "div",
    aten.add.Scalar: "add",
    aten.sub.Scalar: "sub",
    aten.mul.Scalar: "mul",
    aten.div.Scalar: "div",
}
HANDLERS: Mapping[Any, Handler] = {
    **{target: partial(_unary, function) for target, function in _UNARY.items()},
    **{target: partial(_binary, function) for target, function in _BINARY.items()},
    aten.gelu.default: _gelu,
    nn.GELU: _gelu,
    aten.pow.Tensor_Scalar: _power,
}
