"""The linear over codes into 16 levels as a step and as the torch operator `tersor::lookup_linear`.

Gradients flow to the input, straight through the rounding of the activations; all else is constant here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tersor.backends.numba.elementwise import Activation
from tersor.backends.numba.features import level_named
from tersor.backends.numba.layout import Layout, unpack_codes
from tersor.backends.numba.native.values import Operand
from tersor.backends.numba.reference import activate
from tersor.backends.numba.steps import Step, multiply_step, quantise_step, rounded_bytes, run_now
from tersor.compiler.errors import RequestError

CENTER = 128  # of the levels, which are unsigned bytes

_library = torch.library.Library("tersor", "FRAGMENT")
_library.define(
    "lookup_linear(Tensor x, Tensor codes, Tensor levels, Tensor scale, Tensor bias, int rows, int columns, int width, "
    "int activation_group, str activation, str level) -> Tensor"
)


def input_layout(rows: int, columns: int, activation_group: int) -> Layout:
    """How the activations are rounded: as for codes of 8 bits, whose center the levels have."""
    return Layout(rows, columns, 8, 0, activation_group)


def lookup_step(
    level: str,
    layout: Layout,
    activation: Activation,
    count: int,
    rounded: tuple[Operand, Operand],
    weights: tuple[Operand, Operand, Operand, Operand],
    y: Operand,
    resident: bool = False,
) -> Step:
    """y (count, layout.rows) from activations rounded for `input_layout` and packed (codes, scale, levels, bias)."""
    return multiply_step(level, layout, activation, count, rounded, weights, y, looked_up=True, resident=resident)


def lookup_linear(
    x: Tensor, codes: Tensor, levels: Tensor, scale: Tensor, bias: Tensor, rows: int, columns: int, width: int,
    activation_group: int, activation: Activation, level: str,
) -> Tensor:  # fmt: skip
    """activation(q(x) @ w^T + bias) on the CPU: x (..., columns), result (..., rows)."""
    if x.shape[-1] != columns:
        raise RequestError(f"a linear of {columns} inputs was given an input of shape {tuple(x.shape)}")
    values = x.to(torch.float32).contiguous()
    y = torch.empty((*x.shape[:-1], rows))
    count = values.numel() // columns
    given = input_layout(rows, columns, activation_group)
    q, records = (torch.empty(size + 64, dtype=torch.uint8) for size in rounded_bytes(given, count))
    rounded = (q.data_ptr(), records.data_ptr())
    weights = (codes.data_ptr(), scale.data_ptr(), levels.data_ptr(), bias.data_ptr())
    layout = Layout(rows, columns, width, 0, activation_group)
    first = quantise_step(level, given, count, values.data_ptr(), 4 * columns, *rounded)
    run_now(level, (first, lookup_step(level, layout, activation, count, rounded, weights, y.data_ptr())))
    return y.to(x.dtype)


def unpack_levels(codes: Tensor, levels: Tensor, scale: Tensor, layout: Layout, level: str) -> Tensor:
    """w (rows, columns) float32."""
    found = unpack_codes(codes, layout, level_named(level))
    return (levels[found.to(torch.int64)].float() - CENTER) * scale[0]


def _fake(x: Tensor, codes: Tensor, levels: Tensor, scale: Tensor, bias: Tensor, rows: int, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *arrays = inputs[:5]
    ctx.rest = inputs[5:]
    ctx.save_for_backward(x, *arrays)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """grad_x = (grad * activation'(z)) @ w, z the output before the activation."""
    x, codes, levels, scale, bias = ctx.saved_tensors
    rows, columns, width, group, activation, level = ctx.rest
    if activation != "none":
        before = linear(x, codes, levels, scale, bias, rows, columns, width, group, "none", level)
        before = before.detach().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(activate(before, activation), before, grad)
    weight = unpack_levels(codes, levels, scale, Layout(rows, columns, width, 0, group), level)
    return (grad @ weight.to(grad.dtype), *[None] * 10)


_library.impl("lookup_linear", lookup_linear, "CPU")
torch.library.register_fake("tersor::lookup_linear", _fake, lib=_library)
torch.library.register_autograd("tersor::lookup_linear", _backward, setup_context=_context, lib=_library)
linear = torch.ops.tersor.lookup_linear.default
