"""The kernels as torch operators: `tersor::quantized_linear` and `tersor::quantized_embedding`.

Export, compile and fake tensors see opaque nodes. Gradients flow to the input of a linear, straight through the
rounding of the activations: grad @ w. Codes, scales and biases are constants here: whoever trains them works on the
store that they were packed from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tersor.backends.numba.elementwise import Activation
from tersor.backends.numba.features import level_named
from tersor.backends.numba.layout import Layout, dense
from tersor.backends.numba.plan import plan
from tersor.backends.numba.reference import activate
from tersor.compiler.errors import RequestError

_library = torch.library.Library("tersor", "FRAGMENT")
_library.define(
    "quantized_linear(Tensor x, Tensor codes, Tensor scale, Tensor? shift, Tensor bias, int rows, int columns, "
    "int width, int weight_group, int activation_group, str activation, str level) -> Tensor"
)


def quantized_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    bias: Tensor,
    rows: int,
    columns: int,
    width: int,
    weight_group: int,
    activation_group: int,
    activation: Activation,
    level: str,
) -> Tensor:
    """The CPU kernel behind `torch.ops.tersor.quantized_linear`: activation(q(x) @ w^T + bias), (..., columns) ->
    (..., rows).
    """
    if x.shape[-1] != columns:
        raise RequestError(f"a quantised linear of {columns} inputs was given an input of shape {tuple(x.shape)}")
    run = plan(rows, columns, width, weight_group, activation_group, shift is not None, activation, level)
    if x.dtype is not torch.float32:
        return run(x.float().contiguous(), codes, scale, shift, bias).to(x.dtype)
    return run(x if x.is_contiguous() else x.contiguous(), codes, scale, shift, bias)


_library.impl("quantized_linear", quantized_linear, "CPU")


@torch.library.register_fake("tersor::quantized_linear", lib=_library)
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
    rows, columns, width, weight_group, activation_group, activation, level = ctx.shape
    if activation != "none":
        linear = torch.ops.tersor.quantized_linear
        before = linear(x, codes, scale, shift, bias, *ctx.shape[:5], "none", level).detach().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(activate(before, activation), before, grad)
    layout = Layout(rows, columns, width, weight_group, activation_group, shift is not None)
    weight = dense(codes, scale, shift, layout, level_named(level))
    return (grad @ weight.to(grad.dtype), *[None] * 11)


torch.library.register_autograd(
    "tersor::quantized_linear", _linear_backward, setup_context=_linear_context, lib=_library
)
