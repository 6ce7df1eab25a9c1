"""Collects the steps of a program while its graph is walked, then plans its memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from tersor.backends.numba.layout import Layout
from tersor.backends.numba.native.memory import Life, place
from tersor.backends.numba.native.program import Array, Check, Fresh, Move, NativeRun, Program, TorchCall
from tersor.backends.numba.native.values import ARENA, NOWHERE, SELF, Operand, Ref, Value, contiguous
from tersor.backends.numba.steps import Step, quantise_step, rounded_bytes
from tersor.backends.numba.tensorsteps import copy_step
from tersor.compiler.errors import CompilerBug


@dataclass
class _Buffer:
    """Memory of the program: in the arena, or a tensor of its own at `base`, or a constant."""

    size: int
    base: int = ARENA
    constant: Tensor | None = None
    first: int | None = None
    last: int = -1


@dataclass(frozen=True)
class Rounded:
    """Activations in 8 bits, and their records."""

    q: Ref
    records: Ref


@dataclass
class Builder:
    """A program in the making, for one CPU level and number of threads. `resident`: it runs again at once, so that what
    it reads is still in the caches."""

    level: str
    threads: int
    resident: bool = False
    buffers: list[_Buffer] = field(default_factory=list)
    items: list[Step | TorchCall] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    readers: tuple[Any, ...] = ()  # the modules and operators that read what is computed now
    memo: dict[Any, Any] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)
    _bases: int = SELF + 1
    _checks: list[tuple[Ref, Callable[[int], None]]] = field(default_factory=list)
    _rounded: dict[tuple[Value, tuple[int, ...]], Rounded] = field(default_factory=dict)

    # --- memory ----------------------------------------------------------------------------------------------------
    def _buffer(self, buffer: _Buffer) -> int:
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def new(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Value:
        """A dense tensor in the arena."""
        shape = tuple(shape)
        buffer = self._buffer(_Buffer(prod(shape) * dtype.itemsize))
        return Value(buffer, shape, contiguous(shape), dtype=dtype)

    def outside(self, shape: Sequence[int], dtype: torch.dtype) -> Value:
        """A dense tensor that is made elsewhere: an input, or what a torch call returns."""
        shape = tuple(shape)
        buffer = self._buffer(_Buffer(prod(shape) * dtype.itemsize, self._bases))
        self._bases += 1
        return Value(buffer, shape, contiguous(shape), dtype=dtype)

    def input(self, tensor: Tensor) -> Value:
        """The next input, of the shape and type of `tensor`."""
        value = self.outside(tensor.shape, tensor.dtype)
        self.inputs.append(self.buffers[value.buffer].base)
        return value

    def moving(self, start: int, step: int) -> int:
        """A buffer that begins at `start` + `step` * the offset of the run."""
        key = (start, step)
        if key not in self.memo:
            self.memo[key] = self._buffer(_Buffer(0, self._bases))
            self.moves.append(Move(self._bases, start, step))
            self._bases += 1
        buffer: int = self.memo[key]
        return buffer

    def value(self, found: Value | Tensor) -> Value:
        """A value as it is, a tensor as a constant of the program."""
        if isinstance(found, Value):
            return found
        tensor = found.detach().contiguous()
        buffer = self._buffer(_Buffer(tensor.nbytes, NOWHERE, tensor))
        return Value(buffer, tuple(tensor.shape), contiguous(tuple(tensor.shape)), dtype=tensor.dtype)

    def keep(self, tensor: Tensor) -> int:
        """Address of a weight, which lives as long as the program."""
        self.kept.append(tensor)
        return tensor.data_ptr()

    def dense(self, value: Value | Tensor) -> Value:
        """The value, copied if its elements do not lie one after the other."""
        value = self.value(value)
        if value.dense:
            return value
        target = self.new(value.shape, value.dtype)
        step = copy_step(self.level, value, target)
        if step is None:
            found: Value = self.torch(torch.ops.aten.contiguous.default, (value,), {})
            return found
        self.step(step)
        return target

    def settled(self, value: Value) -> Value:
        """A copy in the arena, as torch calls want what moves with the offset."""
        target = self.new(value.shape, value.dtype)
        step = copy_step(self.level, value, target)
        if step is None or value.dtype is not torch.float32:
            raise CompilerBug(f"no copy of {value}")
        self.step(step)
        return target

    # --- steps -----------------------------------------------------------------------------------------------------
    def step(self, step: Step) -> None:
        """Append a step."""
        for operand in step.operands:
            if isinstance(operand, Ref):
                self._touch(operand.buffer)
        self.items.append(step)

    def _touch(self, buffer: int) -> None:
        held = self.buffers[buffer]
        held.first = len(self.items) if held.first is None else held.first
        held.last = len(self.items)

    def check(self, refuse: Callable[[int], None]) -> Ref:
        """A place where a step can leave a value other than 0 to have the run refused."""
        ref = self.new((1,), torch.int64).ref
        self._checks.append((ref, refuse))
        return ref

    def rounded(self, value: Value, layout: Layout) -> Rounded:
        """`value` (..., columns) in 8 bits as the layout of a linear wants it; made once for all its readers."""
        key = (value, _alike(layout))
        if key not in self._rounded:
            rounded = self.will_round(value, layout)
            rows = value.numel // layout.columns
            places = (rounded.q, rounded.records)
            self.step(quantise_step(self.level, layout, rows, value.ref, 4 * layout.columns, *places))
        return self._rounded[key]

    def will_round(self, value: Value, layout: Layout) -> Rounded:
        """Places for `value` in 8 bits, which the caller has written."""
        sizes = rounded_bytes(layout, value.numel // layout.columns)
        rounded = Rounded(*(self.new((size,), torch.uint8).ref for size in sizes))
        self._rounded[value, _alike(layout)] = rounded
        return rounded

    def torch(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Let torch compute it: the result, with a Value for every tensor."""
        leaves, spec = pytree.tree_flatten(_shapes(function, args, dict(kwargs)))
        results = [self.outside(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves]
        bases = tuple(self.buffers[x.buffer].base if isinstance(x, Value) else NOWHERE for x in results)
        self.call(TorchCall(function, args, dict(kwargs), bases))
        return pytree.tree_unflatten(results, spec)

    def call(self, call: TorchCall) -> None:
        """Append a torch call whose results are known."""
        for leaf in pytree.tree_leaves((call.args, dict(call.kwargs))):
            if isinstance(leaf, Value):
                self._touch(leaf.buffer)
        self.items.append(call)

    def base(self, value: Value) -> int:
        return self.buffers[value.buffer].base

    # --- the end ---------------------------------------------------------------------------------------------------
    def finish(self, outputs: Any) -> Program:
        """The program that gives `outputs`."""
        fresh = self._own_outputs(outputs)
        end = len(self.items)
        for leaf in pytree.tree_leaves(outputs):
            if isinstance(leaf, Value):
                self.buffers[leaf.buffer].last = end
        for ref, _ in self._checks:
            self.buffers[ref.buffer].first, self.buffers[ref.buffer].last = -1, end
        lives = {
            key: Life(buffer.size, buffer.first, buffer.last)
            for key, buffer in enumerate(self.buffers)
            if buffer.base == ARENA and buffer.first is not None
        }
        places, arena = place(lives)
        return Program(
            level=self.level,
            threads=self.threads,
            items=tuple(self._items(places)),
            inputs=tuple(self.inputs),
            fresh=tuple(fresh),
            checks=tuple(Check(places[ref.buffer], refuse) for ref, refuse in self._checks),
            outputs=outputs,
            places=places,
            outside={key: b.base for key, b in enumerate(self.buffers) if b.base > SELF},
            constants={key: b.constant for key, b in enumerate(self.buffers) if b.constant is not None},
            bases=self._bases,
            arena=arena,
            kept=tuple(self.kept),
            moves=tuple(self.moves),
        )

    def _own_outputs(self, outputs: Any) -> list[Fresh]:
        """Outputs that fill an arena buffer are written where the caller will have them."""
        fresh = []
        for leaf in pytree.tree_leaves(outputs):
            if not isinstance(leaf, Value) or self.base(leaf) != ARENA:
                continue
            buffer = self.buffers[leaf.buffer]
            if leaf.dense and leaf.offset == 0 and leaf.numel * leaf.dtype.itemsize == buffer.size:
                buffer.base = self._bases
                self._bases += 1
                fresh.append(Fresh(buffer.base, leaf.shape, leaf.dtype))
        return fresh

    def _items(self, places: Mapping[int, int]) -> list[NativeRun | TorchCall]:
        """Steps that follow each other become one native run."""
        items: list[NativeRun | TorchCall] = []
        waiting: list[Step] = []
        for item in [*self.items, None]:
            if isinstance(item, Step):
                if item.units:
                    waiting.append(item)
                continue
            if waiting:
                items.append(self._native(waiting, places))
                waiting = []
            if item is not None:
                items.append(item)
        return items

    def _native(self, steps: Sequence[Step], places: Mapping[int, int]) -> NativeRun:
        table: list[tuple[int, int]] = []
        operands: list[tuple[int, int]] = []
        start = 4 * len(steps)
        for step in steps:
            address = 8 * (start + len(operands))
            table += [(step.kernel, NOWHERE), (address, SELF), (step.units, NOWHERE)]
            table.append((step.chunk(self.threads), NOWHERE))
            operands += [self._place(operand, places) for operand in step.operands]
        cells: Array = np.array(table + operands, dtype=np.int64)
        template, bases = np.ascontiguousarray(cells[:, 0]), np.ascontiguousarray(cells[:, 1])
        return NativeRun(template, bases, tuple(step.name for step in steps), max(step.work for step in steps))

    def _place(self, operand: Operand, places: Mapping[int, int]) -> tuple[int, int]:
        """(number, base) of an operand."""
        if isinstance(operand, int):
            return operand, NOWHERE
        buffer = self.buffers[operand.buffer]
        if buffer.constant is not None:
            return buffer.constant.data_ptr() + operand.offset, NOWHERE
        if buffer.base == ARENA:
            if operand.buffer not in places:
                raise CompilerBug(f"buffer {operand.buffer} has no place")
            return places[operand.buffer] + operand.offset, ARENA
        return operand.offset, buffer.base


def _alike(layout: Layout) -> tuple[int, ...]:
    """What of a linear's layout its rounded input depends on."""
    return layout.columns, layout.group, layout.activation_span


def _shapes(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a torch function returns, without computing it. A module may hold real weights: it needs fake tensors, which
    take a hundred times as long as tensors without memory.
    """

    def empty(device: str) -> Callable[[Any], Any]:
        def replace(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                return torch.empty_strided(leaf.shape, leaf.stride, dtype=leaf.dtype, device=device)
            return leaf.to("meta") if isinstance(leaf, Tensor) and device == "meta" else leaf

        return replace

    if isinstance(function, torch._ops.OpOverload) and function.namespace == "aten":
        args, kwargs = pytree.tree_map(empty("meta"), (args, {k: v for k, v in kwargs.items() if k != "device"}))
        return function(*args, **kwargs)
    with FakeTensorMode(allow_non_fake_inputs=True):
        args, kwargs = pytree.tree_map(empty("cpu"), (args, kwargs))
        return function(*args, **kwargs)
