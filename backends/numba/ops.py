"""The kernels as torch operators: `tersor::quantized_linear`, `tersor::add_layer_norm`.

Export, compile and fake tensors see opaque nodes. Gradients flow to the input of a linear, straight through the
rounding of the activations: grad @ w. Codes, scales and biases are constants here: whoever trains them works on the
store that they were packed from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.backends.numba.elementwise import Activation
from tersor.backends.numba.features import level_named
from tersor.backends.numba.layout import Layout, dense
from tersor.backends.numba.reference import activate
from tersor.backends.numba.steps import (
    Norm,
    multiply_step,
    norm_step,
    quantise_step,
    rounded_bytes,
    run_now,
)
from tersor.compiler.errors import RequestError

_library = torch.library.Library("tersor", "FRAGMENT")
_library.define(
    "quantized_linear(Tensor x, Tensor codes, Tensor scale, Tensor? shift, Tensor bias, int rows, int columns, "
    "int bits, int room, int weight_group, int activation_group, str activation, str level) -> Tensor"
)
_library.define(
    "add_layer_norm(Tensor x, Tensor? other, Tensor weight, Tensor bias, float epsilon, str level) -> Tensor"
)


def direct(x: Tensor) -> bool:
    """Whether a kernel may be called on `x` without the dispatcher, which costs as much as a small product.

    Nobody is watching: an ordinary tensor on the CPU that needs no gradient, no mode, no transform, no tracing.
    """
    return _ordinary(x) and _unwatched()


def all_direct(tensors: Sequence[Tensor]) -> bool:
    """Whether all are `direct`."""
    return all(map(_ordinary, tensors)) and _unwatched()


def _ordinary(x: Tensor) -> bool:
    return type(x) is Tensor and x.is_cpu and not (x.requires_grad and torch.is_grad_enabled())


def _unwatched() -> bool:
    return (
        not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.compiler.is_compiling()
    )


# --- linear ----------------------------------------------------------------------------------------------------------
def quantized_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    bias: Tensor,
    rows: int,
    columns: int,
    bits: int,
    room: int,
    weight_group: int,
    activation_group: int,
    activation: Activation,
    level: str,
) -> Tensor:
    """activation(q(x) @ w^T + bias) on the CPU: x (..., columns), result (..., rows); `shift` holds the starts where
    there is `room`.
    """
    if x.shape[-1] != columns:
        raise RequestError(f"a quantised linear of {columns} inputs was given an input of shape {tuple(x.shape)}")
    layout = _layout(rows, columns, bits, room, weight_group, activation_group, shift)
    values = x.to(torch.float32).contiguous()
    y = torch.empty((*x.shape[:-1], rows))
    count = values.numel() // columns
    sizes = rounded_bytes(layout, count)
    q, records = (torch.empty(size + 64, dtype=torch.uint8) for size in sizes)
    rounded = (q.data_ptr(), records.data_ptr())
    weights = (codes.data_ptr(), scale.data_ptr(), 0 if shift is None else shift.data_ptr(), bias.data_ptr())
    steps = (
        quantise_step(level, layout, count, values.data_ptr(), 4 * columns, *rounded),
        multiply_step(level, layout, activation, count, rounded, weights, y.data_ptr()),
    )
    run_now(level, steps)
    return y.to(x.dtype)


def _layout(
    rows: int, columns: int, bits: int, room: int, weight_group: int, activation_group: int, shift: Tensor | None
) -> Layout:
    shifted = shift is not None and not room
    return Layout(rows, columns, bits, weight_group, activation_group, shifted, room)


def _linear_fake(
    x: Tensor, codes: Tensor, scale: Tensor, shift: Tensor | None, bias: Tensor, rows: int, *_: Any
) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, codes, scale, shift, bias, *ctx.shape = inputs
    ctx.save_for_backward(x, codes, scale, shift, bias)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """grad_x = (grad * activation'(z)) @ w, z the output before the activation."""
    x, codes, scale, shift, bias = ctx.saved_tensors
    rows, columns, bits, room, weight_group, activation_group, activation, level = ctx.shape
    if activation != "none":
        before = linear(x, codes, scale, shift, bias, *ctx.shape[:6], "none", level).detach().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(activate(before, activation), before, grad)
    layout = _layout(rows, columns, bits, room, weight_group, activation_group, shift)
    weight = dense(codes, scale, shift, layout, level_named(level))
    return (grad @ weight.to(grad.dtype), *[None] * 12)


# --- layer normalisation ---------------------------------------------------------------------------------------------
def add_layer_norm(x: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float, level: str) -> Tensor:
    """layer_norm(x + other) over the last dimension on the CPU; x and other (..., n) of one shape, weight and bias
    (n).
    """
    columns = x.shape[-1]
    fits = columns % level_named(level).lanes == 0 and x.dtype is torch.float32
    if not fits or (other is not None and (other.shape != x.shape or other.dtype is not torch.float32)):
        return F.layer_norm(x if other is None else x + other, (columns,), weight, bias, epsilon)
    x = x.contiguous()
    second = 0
    if other is not None:
        other = other.contiguous()
        second = other.data_ptr()
    y = torch.empty_like(x)
    rows = x.numel() // columns
    weights, result = (weight.data_ptr(), bias.data_ptr()), y.data_ptr()
    norm = Norm((rows, columns), x.data_ptr(), second, max(rows, 1), *weights, result, result, epsilon)
    run_now(level, [norm_step(level, norm)])
    return y


def _norm_fake(x: Tensor, other: Tensor | None, *_: Any) -> Tensor:
    return torch.empty_like(x if other is None else x + other)


def _norm_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.epsilon, _ = inputs
    ctx.save_for_backward(*tensors)


def _norm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """torch's own layer normalisation, recomputed."""
    x, weight, bias = (ctx.saved_tensors[i].detach().requires_grad_() for i in (0, 2, 3))
    other = None if ctx.saved_tensors[1] is None else ctx.saved_tensors[1].detach().requires_grad_()
    with torch.enable_grad():
        y = F.layer_norm(x if other is None else x + other, (x.shape[-1],), weight, bias, ctx.epsilon)
    wanted = [t for t in (x, other, weight, bias) if t is not None]
    found = list(torch.autograd.grad(y, wanted, grad))
    if other is None:
        found.insert(1, torch.zeros(()))
    return (found[0], None if other is None else found[1], found[2], found[3], None, None)


for _name, _kernel, _fake in (
    ("quantized_linear", quantized_linear, _linear_fake),
    ("add_layer_norm", add_layer_norm, _norm_fake),
):
    _library.impl(_name, _kernel, "CPU")
    torch.library.register_fake(f"tersor::{_name}", _fake, lib=_library)
torch.library.register_autograd(
    "tersor::quantized_linear", _linear_backward, setup_context=_linear_context, lib=_library
)
torch.library.register_autograd("tersor::add_layer_norm", _norm_backward, setup_context=_norm_context, lib=_library)

linear = torch.ops.tersor.quantized_linear.default
layer_norm = torch.ops.tersor.add_layer_norm.default
