"""The linear over floating weights as a step and as the torch operator `tersor::dense_linear`.

Gradients flow to the input; weights and biases are constants here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tersor.backends.numba.build import activation_kernel, kernel_address
from tersor.backends.numba.densekernels import DenseSpec
from tersor.backends.numba.densepacking import dense_spec, unpack_dense
from tersor.backends.numba.elementwise import Activation
from tersor.backends.numba.features import level_named
from tersor.backends.numba.native.values import Operand
from tersor.backends.numba.reference import activate
from tersor.backends.numba.steps import Step, float_bits, run_now
from tersor.compiler.errors import RequestError

_ROWS = 120  # activations of a block: a block of columns of them stays in the second-level cache
_FEW = 16  # rows up to which every panel is a unit of its own
_RUN = 4  # else so many panels

_library = torch.library.Library("tersor", "FRAGMENT")
_library.define(
    "dense_linear(Tensor x, Tensor weight, Tensor bias, int rows, int columns, int exponent, str activation, "
    "str level) -> Tensor"
)


def dense_step(
    spec: DenseSpec,
    shape: tuple[int, int],
    exponent: int,
    activation: Activation,
    count: int,
    x: tuple[Operand, int],
    weights: tuple[Operand, Operand],
    y: Operand,
) -> Step:
    """y (count, outputs) = activation(2^exponent x @ w^T + bias) for w of `shape` (outputs, columns).

    x is (address, bytes between rows) of floats; `weights` are the packed matrix and the padded bias.
    """
    outputs, columns = shape
    panel = level_named(spec.level).panel
    block, run = max(min(count, _ROWS), 1), 1 if count <= _FEW else _RUN
    runs = -(-outputs // (panel * run))
    operands = (
        count, *x, *weights, y, 4 * outputs, outputs, columns, float_bits(2.0**exponent),
        activation_kernel(spec.level, activation), block, run,
    )  # fmt: skip
    cost = max(block / 60, spec.itemsize / 20) * panel * run * columns
    return Step(
        "dense", kernel_address(spec, "glue_dense"), operands, -(-count // block) * runs, cost, 4 * panel * block
    )


def dense_linear(
    x: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int, exponent: int, activation: Activation, level: str
) -> Tensor:
    """activation(x @ w^T + bias) on the CPU: x (..., columns), result (..., rows)."""
    if x.shape[-1] != columns:
        raise RequestError(f"a linear of {columns} inputs was given an input of shape {tuple(x.shape)}")
    values = x.to(torch.float32).contiguous()
    y = torch.empty((*x.shape[:-1], rows))
    step = dense_step(
        dense_spec(weight, level),
        (rows, columns),
        exponent,
        activation,
        values.numel() // columns,
        (values.data_ptr(), 4 * columns),
        (weight.data_ptr(), bias.data_ptr()),
        y.data_ptr(),
    )
    run_now(level, [step])
    return y.to(x.dtype)


def _fake(x: Tensor, weight: Tensor, bias: Tensor, rows: int, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.rest = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """grad_x = (grad * activation'(z)) @ w, z the output before the activation."""
    x, weight, bias = ctx.saved_tensors
    rows, columns, exponent, activation, level = ctx.rest
    if activation != "none":
        before = linear(x, weight, bias, rows, columns, exponent, "none", level).detach().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(activate(before, activation), before, grad)
    matrix = torch.ldexp(unpack_dense(weight, rows, columns, level_named(level)).float(), torch.tensor(exponent))
    return (grad @ matrix.to(grad.dtype), *[None] * 7)


_library.impl("dense_linear", dense_linear, "CPU")
torch.library.register_fake("tersor::dense_linear", _fake, lib=_library)
torch.library.register_autograd("tersor::dense_linear", _backward, setup_context=_context, lib=_library)

linear = torch.ops.tersor.dense_linear.default
