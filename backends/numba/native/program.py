"""A graph bound to concrete shapes: native steps over one arena, and torch calls for what has no step."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.backends.numba.native.pool import Workspace, execute
from tersor.backends.numba.native.values import ARENA, SELF, Value, contiguous
from tersor.compiler.errors import CompilerBug

Array = np.ndarray[Any, np.dtype[np.int64]]
Tensors = Sequence[Tensor | None]
"""By base, the tensors of a run that lie outside of the arena."""


@dataclass(frozen=True)
class NativeRun:
    """Steps called `names`: their table, then their operands, as integers relative to the bases named in `bases`."""

    template: Array
    bases: Array
    names: tuple[str, ...]
    work: int

    @property
    def count(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class TorchCall:
    """function(*args, **kwargs), whose tensors become the bases `results`, in the order of its flat result.

    A result may be None where a step takes an absent operand.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[int, ...]


@dataclass(frozen=True)
class Fresh:
    """An output that the steps write into memory of its own."""

    base: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @cached_property
    def stride(self) -> tuple[int, ...]:
        return contiguous(self.shape)

    def tensor(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype)  # half the time of torch.empty


@dataclass(frozen=True)
class Move:
    """A base at `start` + `step` * the offset of a run."""

    base: int
    start: int
    step: int


@dataclass(frozen=True)
class Check:
    """A place that a step sets where it was given something impossible; `refuse(value)` raises."""

    offset: int
    refuse: Callable[[int], None]


class Context:
    """Memory that one run at a time works in."""

    def __init__(self) -> None:
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._typed: dict[torch.dtype, Tensor] = {}
        self.arena = 0
        self.workspace = Workspace()
        self._images: dict[int, tuple[Array, int]] = {}
        self._addresses: dict[int, Array] = {}

    def addresses(self, count: int) -> Array:
        """Room for the addresses of so many bases, all 0."""
        held = self._addresses.get(count)
        if held is None:
            held = self._addresses[count] = np.zeros(count, dtype=np.int64)
        held.fill(0)
        return held

    def fit(self, size: int) -> None:
        """Make the arena at least `size` bytes."""
        if self._arena.numel() < size:
            memory = torch.zeros(size + 64, dtype=torch.uint8)
            shift = -memory.data_ptr() % 64
            self._arena = memory[shift : shift + size]
            self._typed = {}
            self.arena = self._arena.data_ptr()

    def image(self, size: int) -> tuple[Array, int]:
        """Room for `size` integers, and its address."""
        held = self._images.get(size)
        if held is None:
            image: Array = np.empty(size, dtype=np.int64)
            held = self._images[size] = (image, image.ctypes.data)
        return held

    def tensor(self, value: Value, offset: int) -> Tensor:
        """The tensor at `offset` bytes of the arena plus the value's own offset."""
        typed = self._typed.get(value.dtype)
        if typed is None:
            size = self._arena.numel() // 8 * 8
            typed = self._typed[value.dtype] = self._arena[:size].view(value.dtype)
        return typed.as_strided(value.shape, value.stride, offset // value.dtype.itemsize + value.offset)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in the arena."""
        return tensor.untyped_storage().data_ptr() == self._arena.untyped_storage().data_ptr()


@dataclass(frozen=True)
class Program:
    """What to do for inputs of known shapes. `places` are the offsets of arena buffers, `outside` the base of every
    buffer that is a tensor of its own; `outputs` is the graph's output with Values in it."""

    level: str
    threads: int
    items: tuple[NativeRun | TorchCall, ...]
    inputs: tuple[int, ...]
    fresh: tuple[Fresh, ...]
    checks: tuple[Check, ...]
    outputs: Any
    places: Mapping[int, int]
    outside: Mapping[int, int]
    constants: Mapping[int, Tensor]
    bases: int
    arena: int
    kept: Sequence[Tensor]
    moves: tuple[Move, ...] = ()

    @property
    def torch_calls(self) -> list[TorchCall]:
        return [item for item in self.items if isinstance(item, TorchCall)]

    def run(self, inputs: Sequence[Tensor], context: Context, offset: int = 0) -> Any:
        """The graph's outputs for these inputs; `offset` tokens came before, where the program is one of a decoder."""
        return Bound(self, inputs, context, offset)()

    @cached_property
    def steady(self) -> bool:
        """Whether every address stays what it is in the first of several calls, and so the outputs' too."""
        outputs = (leaf for leaf in pytree.tree_leaves(self.outputs) if isinstance(leaf, Value | Tensor))
        lasting = all(isinstance(leaf, Value) and leaf.buffer not in self.places for leaf in outputs)
        return lasting and not self.torch_calls

    @cached_property
    def result(self) -> Callable[[Context, Tensors], Any]:
        """Makes the graph's outputs; what kind each is, is found once."""

        def reader(found: Any) -> Callable[[Context, Tensors], Any]:
            if isinstance(found, tuple | list):
                kind, parts = type(found), [reader(part) for part in found]
                return lambda context, tensors: kind([part(context, tensors) for part in parts])
            if isinstance(found, Tensor):
                return lambda context, tensors: found.clone()
            if not isinstance(found, Value):
                return lambda context, tensors: found
            if found.buffer in self.places:
                return lambda context, tensors: self.tensor(found, context, tensors).clone()
            return lambda context, tensors: self.tensor(found, context, tensors)

        return reader(self.outputs)

    def tensor(self, value: Value, context: Context, tensors: Tensors) -> Tensor:
        if value.buffer in self.places:
            return context.tensor(value, self.places[value.buffer])
        constant = self.constants.get(value.buffer)
        tensor = constant if constant is not None else tensors[self.outside[value.buffer]]
        if tensor is None:
            raise CompilerBug(f"buffer {value.buffer} was never written")
        if tuple(tensor.shape) == value.shape and value.offset == 0 and value.dense:
            return tensor
        return tensor.as_strided(value.shape, value.stride, value.offset)


class Bound:
    """A program whose inputs and outputs have their places: a call reads what lies in the inputs now.

    Outputs have memory of their own where the graph allows it, and then the next call writes over them. One call at a
    time.
    """

    def __init__(self, program: Program, inputs: Sequence[Tensor], context: Context, offset: int = 0) -> None:
        context.fit(program.arena)
        self._program, self._context = program, context
        self._addresses = addresses = context.addresses(program.bases)
        self._tensors: list[Tensor | None] = [None] * program.bases
        addresses[ARENA] = context.arena
        for base, given in zip(program.inputs, inputs, strict=True):
            self._tensors[base] = tensor = given.contiguous()
            addresses[base] = tensor.data_ptr()
        for fresh in program.fresh:
            self._tensors[fresh.base] = tensor = fresh.tensor()
            addresses[fresh.base] = tensor.data_ptr()
        for move in program.moves:
            addresses[move.base] = move.start + move.step * offset
        self._outputs: Any = None  # where they are steady, after the first call

    def __call__(self) -> Any:
        """The graph's outputs."""
        program, context = self._program, self._context
        for check in program.checks:
            ctypes.c_int64.from_address(context.arena + check.offset).value = 0
        for item in program.items:
            if isinstance(item, NativeRun):
                image, address = context.image(len(item.template))
                if self._outputs is None:
                    self._fill(item, image, address)
                execute(program.level, address, item.count, context.workspace, item.work, program.threads)
            else:
                self._torch(item)
        for check in program.checks:
            place = ctypes.c_int64.from_address(context.arena + check.offset).value
            if place:
                check.refuse(place)
        if self._outputs is not None:
            return self._outputs
        outputs = program.result(context, self._tensors)
        if program.steady:
            self._outputs = outputs
        return outputs

    def _fill(self, run: NativeRun, image: Array, address: int) -> None:
        """Write the table of a run and its operands, with the addresses of now, where it is executed."""
        self._addresses[SELF] = address
        self._addresses.take(run.bases, out=image, mode="clip")  # the default mode goes through another buffer
        image += run.template

    def _torch(self, call: TorchCall) -> None:
        def resolve(found: Any) -> Any:
            if isinstance(found, Value):
                return self._program.tensor(found, self._context, self._tensors)
            if isinstance(found, tuple | list):
                return type(found)([resolve(part) for part in found])
            return found

        made = call.function(*resolve(call.args), **{k: resolve(v) for k, v in call.kwargs.items()})
        results = (made,) if isinstance(made, Tensor) else pytree.tree_leaves(made)
        for base, result in zip(call.results, results, strict=True):
            if isinstance(result, Tensor):
                self._tensors[base] = tensor = result.clone() if self._context.holds(result) else result.contiguous()
                self._addresses[base] = tensor.data_ptr()
