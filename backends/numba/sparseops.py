"""The linear over kept weights only as steps and as the torch operator `tersor::sparse_linear`.

Gradients flow to the input; weights and biases are constants here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tersor.backends.numba.build import activation_kernel, kernel_address
from tersor.backends.numba.elementwise import Activation
from tersor.backends.numba.features import Level, level_named
from tersor.backends.numba.layout import ceil_to
from tersor.backends.numba.native.values import Operand
from tersor.backends.numba.reference import activate
from tersor.backends.numba.sparsekernels import SparseSpec
from tersor.backends.numba.steps import Step, run_now
from tersor.compiler.errors import RequestError

FEW = 2  # tokens that are taken one by one
MOST_COLUMNS = 1 << 16  # that a place of 16 bits reaches

_library = torch.library.Library("tersor", "FRAGMENT")
_library.define(
    "sparse_linear(Tensor x, Tensor values, Tensor places, Tensor starts, Tensor bias, int rows, int columns, "
    "str activation, str level) -> Tensor"
)


def pack_sparse(matrix: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
    """values (kept), places (kept) and starts (outputs in whole panels + 1) of what is not 0, an output's padded with
    zeros to whole vectors, at least one.
    """
    rows = len(matrix)
    kept = matrix != 0
    count = torch.zeros(ceil_to(rows, level.panel), dtype=torch.int64)
    count[:rows] = kept.sum(1)
    padded = (count.clamp_min(1) + level.lanes - 1) // level.lanes * level.lanes
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), padded.cumsum(0)])
    row, column = kept.nonzero().unbind(1)
    at = starts[row] + torch.arange(len(row)) - (count.cumsum(0) - count)[row]
    values, places = torch.zeros(int(starts[-1])), torch.zeros(int(starts[-1]), dtype=torch.int64)
    values[at], places[at] = matrix[kept].float(), column
    return values, places.to(torch.int16), starts


def unpack_sparse(values: Tensor, places: Tensor, starts: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `pack_sparse`."""
    row = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
    full = torch.zeros(len(starts) - 1, columns)
    return full.index_put((row, places.to(torch.int64) & 0xFFFF), values, accumulate=True)[:rows]


def turned_bytes(level: str, columns: int, count: int) -> int:
    """Bytes that `count` tokens take side by side; 0 where they are taken one by one."""
    lanes = level_named(level).lanes
    return 0 if count <= FEW else 4 * ceil_to(count, lanes) * ceil_to(columns, lanes)


def sparse_steps(
    level: str,
    shape: tuple[int, int],
    activation: Activation,
    count: int,
    x: tuple[Operand, int],
    turned: Operand,
    weights: tuple[Operand, Operand, Operand, Operand],
    kept: int,
    y: Operand,
) -> tuple[Step, ...]:
    """y (count, outputs) = activation(x @ w^T + bias) for w of `shape` (outputs, columns) with `kept` values.

    x is (address, bytes between rows), `turned` a place of `turned_bytes`, `weights` are values, places, starts and
    bias.
    """
    outputs, columns = shape
    on = level_named(level)
    panels = -(-outputs // on.panel)
    after = activation_kernel(level, activation)
    if count <= FEW:
        kernel = kernel_address(SparseSpec(level, "one"), "glue_sparse_one")
        operands = (*x, *weights, y, 4 * outputs, outputs, after)
        return (Step("sparse", kernel, operands, count * panels, kept / panels, 4 * on.panel),)
    blocks = -(-count // on.lanes)
    square = 4 * on.lanes * on.lanes
    turn = Step(
        "turn", kernel_address(SparseSpec(level, "turn"), "glue_turn"), (count, *x, columns, turned), blocks,
        columns * on.lanes / 10, square,
    )  # fmt: skip
    kernel = kernel_address(SparseSpec(level, "many"), "glue_sparse_many")
    many = (count, turned, columns, *weights, y, 4 * outputs, outputs, after)
    return turn, Step("sparse", kernel, many, blocks * panels, kept / panels, square + 4 * on.lanes * on.panel)


def sparse_linear(
    x: Tensor, values: Tensor, places: Tensor, starts: Tensor, bias: Tensor, rows: int, columns: int,
    activation: Activation, level: str,
) -> Tensor:  # fmt: skip
    """activation(x @ w^T + bias) on the CPU: x (..., columns), result (..., rows)."""
    if x.shape[-1] != columns:
        raise RequestError(f"a linear of {columns} inputs was given an input of shape {tuple(x.shape)}")
    inputs = x.to(torch.float32).contiguous()
    y = torch.empty((*x.shape[:-1], rows))
    count = inputs.numel() // columns
    turned = torch.empty(turned_bytes(level, columns, count) + 64, dtype=torch.uint8)
    weights = (values.data_ptr(), places.data_ptr(), starts.data_ptr(), bias.data_ptr())
    given = (inputs.data_ptr(), 4 * columns)
    operands = (given, turned.data_ptr(), weights, values.numel(), y.data_ptr())
    run_now(level, sparse_steps(level, (rows, columns), activation, count, *operands))
    return y.to(x.dtype)


def _fake(x: Tensor, values: Tensor, places: Tensor, starts: Tensor, bias: Tensor, rows: int, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, places, starts, bias, *ctx.rest = inputs
    ctx.save_for_backward(x, values, places, starts, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """grad_x = (grad * activation'(z)) @ w, z the output before the activation."""
    x, values, places, starts, bias = ctx.saved_tensors
    rows, columns, activation, level = ctx.rest
    if activation != "none":
        before = linear(x, values, places, starts, bias, rows, columns, "none", level).detach().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(activate(before, activation), before, grad)
    return (grad @ unpack_sparse(values, places, starts, rows, columns).to(grad.dtype), *[None] * 8)


_library.impl("sparse_linear", sparse_linear, "CPU")
torch.library.register_fake("tersor::sparse_linear", _fake, lib=_library)
torch.library.register_autograd("tersor::sparse_linear", _backward, setup_context=_context, lib=_library)
linear = torch.ops.tersor.sparse_linear.default
