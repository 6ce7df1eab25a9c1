"""The linear over kept blocks or banks as steps and as the torch operator `tersor::structured_linear`.

Gradients flow to the input, straight through the rounding of the activations; all else is constant here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tersor.backends.numba.bankkernels import BankSpec
from tersor.backends.numba.blockkernels import BlockSpec, SpreadSpec
from tersor.backends.numba.build import activation_kernel, kernel_address
from tersor.backends.numba.densepacking import storage_of
from tersor.backends.numba.elementwise import Activation
from tersor.backends.numba.features import level_named
from tersor.backends.numba.layout import Layout, ceil_to
from tersor.backends.numba.native.values import Operand
from tersor.backends.numba.quantiser import record_bytes
from tersor.backends.numba.reference import activate
from tersor.backends.numba.steps import Step, float_bits, quantise_step, rounded_bytes, run_now
from tersor.backends.numba.structure import Packed, Structure, unpack_structure
from tersor.compiler.errors import RequestError

_FLIP = 0x80808080  # of four bytes: signed becomes unsigned with 128 added
_ROWS = 120  # activations of a row block of banks
_NEAR = 24 << 10  # bytes of the first-level cache that inputs may take

_library = torch.library.Library("tersor", "FRAGMENT")
_library.define(
    "structured_linear(Tensor x, Tensor weights, Tensor places, Tensor start, Tensor scale, Tensor bias, "
    "int[] structure, int exponent, str activation, str level) -> Tensor"
)


def input_layout(s: Structure) -> Layout:
    """How activations are rounded: one scale per row."""
    return Layout(s.rows, s.columns, 8)


def _words(s: Structure, coded: bool) -> int:
    """32-bit words of a token that are there."""
    return input_layout(s).padded // 4 if coded else s.columns


def _room(s: Structure, coded: bool, level: str) -> int:
    """Words of a token when it is spread."""
    needed = max(_words(s, coded), s.banks * s.bank // 4, 0 if coded else ceil_to(s.columns, s.width))
    return ceil_to(needed, level_named(level).lanes)


def _tokens(s: Structure, coded: bool, count: int, level: str) -> int:
    """Tokens side by side: a vector, or half of one where more would not fit the first-level cache."""
    if s.bank or count == 1:
        return 1
    lanes = level_named(level).lanes
    return lanes if 4 * lanes * _room(s, coded, level) <= _NEAR else lanes // 2


def _spreads(s: Structure, coded: bool, count: int) -> bool:
    """Whether tokens must be laid anew."""
    return coded or count > 1 or s.columns % s.width != 0


def spread_bytes(s: Structure, coded: bool, count: int, level: str) -> int:
    """Bytes of the tokens as the kernel wants them; 0 where they are as it wants them."""
    if not _spreads(s, coded, count):
        return 0
    tokens = count if s.bank or count == 1 else ceil_to(count, level_named(level).lanes)
    return 4 * _room(s, coded, level) * tokens


def structured_steps(
    level: str,
    s: Structure,
    packed: Packed,
    exponent: int,
    activation: Activation,
    count: int,
    x: tuple[Operand, Operand],
    spread: Operand,
    addresses: tuple[Operand, ...],
    y: Operand,
) -> tuple[Step, ...]:
    """y (count, outputs) = activation(x @ w^T + bias). x is (rounded activations, their records) for codes, (floats, 0)
    for floats; `spread` a place of `spread_bytes`; `addresses` those of weights, places, start, scale and bias.
    """
    on, coded = level_named(level), packed.weights.dtype is torch.int8
    weights, places, start, scale, bias = addresses
    tokens, room = _tokens(s, coded, count, level), _room(s, coded, level)
    given, records = x
    steps = []
    if _spreads(s, coded, count):
        stride = input_layout(s).padded if coded else 4 * s.columns
        operands = (count, given, stride, _words(s, coded), spread, room, _FLIP if coded else 0, tokens)
        kernel = kernel_address(SpreadSpec(level), "glue_spread")
        together = 1 if tokens == 1 else on.lanes
        cost = 0.1 * room * together
        steps.append(Step("spread", kernel, operands, -(-count // together), cost, 4 * on.lanes * on.lanes))
        given = spread
    after, size = activation_kernel(level, activation), record_bytes(1)
    target = (y, 4 * s.rows, s.rows, after)
    wide = s.panel(on)
    panels = -(-s.rows // wide)
    if s.bank:
        block = min(count, _ROWS)
        spec = BankSpec(level, s.tables, s.quads)
        groups = (s.per_group, s.groups, start, scale)
        banks = (count, given, 4 * room, weights, places, *groups, records, size, bias, *target, block)
        cost = block * wide * s.values / 100
        units = -(-count // block) * panels
        steps.append(Step("banks", kernel_address(spec, "glue_banks"), banks, units, cost, 4 * wide * block))
        return tuple(steps)
    storage = "int8" if coded else storage_of(packed.weights)
    kind = BlockSpec(level, s.height, s.width, storage, tokens)
    factor = scale if coded else float_bits(2.0**exponent)
    groups = (s.per_group, s.groups, start, factor)
    blocks = (count, given, 4 * room * tokens, weights, places, *groups, records, size, bias, *target)
    cost = tokens * wide * s.values / (150 if coded else 40)
    units = -(-count // tokens) * panels
    steps.append(Step("blocks", kernel_address(kind, "glue_blocks"), blocks, units, cost, 4 * wide * tokens))
    return tuple(steps)


def structured_linear(
    x: Tensor, weights: Tensor, places: Tensor, start: Tensor, scale: Tensor, bias: Tensor, structure: list[int],
    exponent: int, activation: Activation, level: str,
) -> Tensor:  # fmt: skip
    """activation(x @ w^T + bias) on the CPU: x (..., columns), result (..., rows)."""
    s = Structure(*structure)
    if x.shape[-1] != s.columns:
        raise RequestError(f"a linear of {s.columns} inputs was given an input of shape {tuple(x.shape)}")
    values = x.to(torch.float32).contiguous()
    y = torch.empty((*x.shape[:-1], s.rows))
    count = values.numel() // s.columns
    if not count:
        return y.to(x.dtype)
    coded = weights.dtype is torch.int8
    layout = input_layout(s)
    sizes = (*rounded_bytes(layout, count), spread_bytes(s, coded, count, level))
    q, records, spread = (torch.empty(size + 64, dtype=torch.uint8) for size in sizes)
    steps: tuple[Step, ...] = ()
    given: tuple[Operand, Operand] = (values.data_ptr(), 0)
    if coded:
        given = (q.data_ptr(), records.data_ptr())
        steps = (quantise_step(level, layout, count, values.data_ptr(), 4 * s.columns, *given),)
    arrays = (weights, places, start, scale)
    addresses = tuple(a.data_ptr() for a in (*arrays, bias))
    operands = (count, given, spread.data_ptr(), addresses, y.data_ptr())
    run_now(level, (*steps, *structured_steps(level, s, Packed(*arrays), exponent, activation, *operands)))
    return y.to(x.dtype)


def _fake(
    x: Tensor, weights: Tensor, places: Tensor, start: Tensor, scale: Tensor, bias: Tensor, structure: list[int],
    *_: Any,
) -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], structure[0]))


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.rest = inputs[6:]
    ctx.save_for_backward(*inputs[:6])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """grad_x = (grad * activation'(z)) @ w, z the output before the activation."""
    x, *arrays, bias = ctx.saved_tensors
    structure, exponent, activation, level = ctx.rest
    if activation != "none":
        before = linear(x, *arrays, bias, structure, exponent, "none", level).detach().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(activate(before, activation), before, grad)
    weight = unpack_structure(Structure(*structure), Packed(*arrays), exponent, level)
    return (grad @ weight.to(grad.dtype), *[None] * 9)


_library.impl("structured_linear", structured_linear, "CPU")
torch.library.register_fake("tersor::structured_linear", _fake, lib=_library)
torch.library.register_autograd("tersor::structured_linear", _backward, setup_context=_context, lib=_library)
linear = torch.ops.tersor.structured_linear.default
