"""Recurrent layers as steps: for every layer the products with its whole input, then one step through time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from tersor.backends.numba.build import kernel_address
from tersor.backends.numba.cells import GATES, CellSpec, Mode
from tersor.backends.numba.features import level_named
from tersor.backends.numba.inturn import InTurn
from tersor.backends.numba.layout import ceil_to
from tersor.backends.numba.native.builder import Builder
from tersor.backends.numba.native.graph import Handler
from tersor.backends.numba.native.values import ARENA, Operand, Ref, Value
from tersor.backends.numba.recurrent import QuantizedRecurrent
from tersor.backends.numba.recurrentoperands import DIRECTION, HEADER
from tersor.backends.numba.steps import Step
from tersor.compiler.errors import CompilerBug

_LEAST, _MOST = 12, 48  # batch rows that go through time together, if there are so many: multiples of most tiles
_STATE_BYTES = 1 << 17  # their products and states: they stay in the second-level cache
_ALIGN = 64


class _Inner:
    """W_hh h + b_hh for a block of `rows` rows: steps in a memory of their own, which every thread has."""

    def __init__(self, b: Builder, handler: Handler, linear: nn.Module, rows: int, hidden: int, outputs: int) -> None:
        inner = Builder(b.level, 1, resident=True)
        h = inner.new((rows, hidden))
        z = handler(inner, linear, (h,), {})
        self.possible = z is not NotImplemented and all(isinstance(item, Step) for item in inner.items)
        if not self.possible:
            return
        if z.shape != (rows, outputs) or not z.dense:
            raise CompilerBug(f"the product of a state has shape {z.shape}, not {(rows, outputs)}")
        for tensor in inner.kept:
            b.keep(tensor)
        self.steps = [item for item in inner.items if isinstance(item, Step)]
        self.work = max(step.work for step in self.steps)
        self.cost = sum(step.units * step.cost for step in self.steps)
        self._buffers, self._b = inner.buffers, b
        self._places: dict[int, int] = {}
        self.size = 0
        for key, buffer in enumerate(inner.buffers):
            if buffer.base == ARENA:
                self._places[key] = self.size
                self.size += ceil_to(max(buffer.size, 1), _ALIGN)
        self._h, self._z = self._places[h.buffer], self._places[z.buffer] + 4 * z.offset

    def table(self) -> list[Operand]:
        """The table of `recurrentoperands`."""
        cells: list[Operand] = [len(self.steps), self._h, self._z]
        for step in self.steps:
            cells += [step.kernel, step.units, len(step.operands)]
            for operand in step.operands:
                cells += self._relative(operand)
        return cells

    def image_bytes(self) -> int:
        """Room for the steps with their operands."""
        return sum(24 + 8 * len(step.operands) for step in self.steps)

    def _relative(self, operand: Operand) -> tuple[int, int]:
        if isinstance(operand, int):
            return 0, operand
        if operand.buffer in self._places:
            return 1, self._places[operand.buffer] + operand.offset
        constant = self._buffers[operand.buffer].constant
        if constant is None:
            raise CompilerBug("a step inside a recurrence reads what is neither its own nor constant")
        return 0, self._b.keep(constant) + operand.offset


def _block(b: Builder, batch: int, directions: int, row_bytes: int) -> int:
    """Batch rows that go through time together: all threads get some, and their blocks are alike."""
    most = max(_LEAST, min(_MOST, _STATE_BYTES // row_bytes))
    blocks = max(-(-batch // most), min(batch, -(-b.threads // directions)))
    return -(-batch // blocks)


def recurrence_step(
    b: Builder,
    handler: Handler,
    mode: Mode,
    linears: Sequence[nn.Module],
    products: Sequence[tuple[Value, int, int]],
    shape: tuple[int, int, int],
    outputs: tuple[Value, int, int],
    states: tuple[Sequence[Ref], Sequence[Ref], Sequence[Ref], Sequence[Ref]],
) -> Step | None:
    """All time steps of one layer, as many directions as there are `linears` of the state; None if they have no steps.

    `shape` is (batch, length, hidden). `products` and `outputs` are values with the rows from one time and one batch
    row to the next; `outputs` holds the directions side by side. `states` are the first h and c and the last ones, each
    by direction.
    """
    batch, length, hidden = shape
    level, directions, gates = level_named(b.level), len(linears), GATES[mode]
    units = ceil_to(hidden, level.lanes)
    block = _block(b, batch, directions, 4 * (gates * hidden + 2 * units))
    left = batch % block or block
    inners = [
        [_Inner(b, handler, linear, rows, hidden, gates * hidden) for rows in dict.fromkeys((block, left))]
        for linear in linears
    ]
    every = [inner for pair in inners for inner in pair]
    if not all(inner.possible for inner in every):
        return None
    inner_at = ceil_to(max(inner.work for inner in every), _ALIGN)
    state_at = inner_at + max(inner.size for inner in every)
    memory_at = state_at + 4 * block * units
    tail_at = memory_at + 4 * block * units
    image_at = tail_at + 8 * gates * level.lanes
    work = image_at + max(inner.image_bytes() for inner in every)
    operands: list[Operand] = [batch, length, hidden, block, inner_at, state_at, memory_at, tail_at, image_at]
    tables: list[Operand] = []
    y, y_time, y_row = outputs
    for direction, pair in enumerate(inners):
        starts = []
        for inner in pair:
            starts.append(len(HEADER) + directions * len(DIRECTION) + len(tables))
            tables += inner.table()
        u, u_time, u_row = products[direction]
        line, wide = 4 * gates * hidden, 4 * directions * hidden
        target = Ref(y.buffer, y.ref.offset + 4 * direction * hidden)
        operands += [starts[0], starts[-1], u.ref, line * u_time, line * u_row, target, wide * y_time, wide * y_row]
        operands += [*(state[direction] for state in states), direction]
    cost = length * (max(inner.cost for inner in every) + 2.5 * block * hidden)
    kernel = kernel_address(CellSpec(b.level, mode), "glue_recurrence")
    return Step("recurrence", kernel, (*operands, *tables), directions * -(-batch // block), cost, work)


def _states(b: Builder, module: QuantizedRecurrent, hx: Any, batch: int) -> tuple[Value, Value] | None:
    """The first h and c; the same twice where there is no c. None if they are not floats of the right shape."""
    shape = (module.layers * module.directions, batch, module.hidden)
    if hx is None:
        hx = torch.zeros(shape)
    given = tuple(hx) if isinstance(hx, tuple | list) else (hx, hx)
    states = [b.value(state) for state in given]
    if any(state.shape != shape or state.dtype is not torch.float32 for state in states):
        return None
    return b.dense(states[0]), b.dense(states[1])


def _recurrent(
    linears: Mapping[Any, Handler], b: Builder, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    layer: QuantizedRecurrent = module
    x, hx = (b.value(args[0]), args[1] if len(args) > 1 else kwargs.get("hx"))
    if len(x.shape) != 3 or not x.numel or x.dtype is not torch.float32 or layer.level != b.level:
        return NotImplemented
    batch_at = 0 if layer.batch_first else 1
    batch, length = x.shape[batch_at], x.shape[1 - batch_at]
    states = _states(b, layer, hx, batch)
    if states is None:
        return NotImplemented
    turned = not x.dense and x.permuted((1, 0, 2)).dense
    x = x.permuted((1, 0, 2)) if turned else b.dense(x)
    steps = (1, length) if layer.batch_first != turned else (batch, 1)  # rows from one time, one batch row to the next
    last = [b.new(states[0].shape) for _ in range(2 if layer.mode == "lstm" else 1)]
    ends = (last[0], last[-1])
    for number in range(layer.layers):
        cells = [(d, into, state) for n, d, into, state in layer.cells() if n == number]
        products = [_product(linears, b, into, x) for _, into, _ in cells]
        if any(product is None for product in products):
            return NotImplemented
        y = b.new((*x.shape[:2], layer.directions * layer.hidden))
        places = [[_cell(value, number * layer.directions + d) for d, *_ in cells] for value in (*states, *ends)]
        step = recurrence_step(
            b, partial(_handled, linears), layer.mode, [state for *_, state in cells],
            [(product, *steps) for product in products if product is not None], (batch, length, layer.hidden),
            (y, *steps), (places[0], places[1], places[2], places[3]),
        )  # fmt: skip
        if step is None:
            return NotImplemented
        b.step(step)
        x = y
    y = x.permuted((1, 0, 2)) if turned else x
    return (y, (last[0], last[1])) if layer.mode == "lstm" else (y, last[0])


def _handled(linears: Mapping[Any, Handler], b: Builder, module: Any, *rest: Any) -> Any:
    handler = linears.get(type(module))
    return NotImplemented if handler is None else handler(b, module, *rest)


def _product(linears: Mapping[Any, Handler], b: Builder, linear: nn.Module, x: Value) -> Value | None:
    found = _handled(linears, b, linear, (x,), {})
    return None if found is NotImplemented else found


def _cell(value: Value, index: int) -> Ref:
    """Where the state of one layer and direction begins."""
    return value.narrowed(0, index, 1).ref


def _in_turn(
    linears: Mapping[Any, Handler], b: Builder, module: Any, args: tuple[Any, ...], _: Mapping[str, Any]
) -> Any:
    both: InTurn = module
    middle = _handled(linears, b, both.first, args, {})
    return middle if middle is NotImplemented else _handled(linears, b, both.second, (middle,), {})


def handlers(linears: Mapping[Any, Handler]) -> Mapping[Any, Handler]:
    """The handlers of recurrent layers whose matrices are linears that `linears` handles, or chains of them."""
    in_turn: Handler = partial(_in_turn, linears)
    chains: Mapping[Any, Handler] = {**linears, InTurn: in_turn}
    return {InTurn: in_turn, QuantizedRecurrent: partial(_recurrent, chains)}
