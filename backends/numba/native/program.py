"""A graph bound to concrete shapes: native steps over one arena, and torch calls for what has no step."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.backends.numba.native.pool import Workspace, execute
from tersor.backends.numba.native.values import ARENA, SELF, Value
from tersor.compiler.errors import CompilerBug

Array = np.ndarray[Any, np.dtype[np.int64]]


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
    """An output that the steps write into memory of its own, like `form` in shape and type."""

    base: int
    form: Tensor

    @staticmethod
    def of(base: int, shape: tuple[int, ...], dtype: torch.dtype) -> Fresh:
        return Fresh(base, torch.zeros((), dtype=dtype).expand(shape))


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
        context.fit(self.arena)
        addresses: Array = np.zeros(self.bases, dtype=np.int64)
        tensors: list[Tensor | None] = [None] * self.bases
        addresses[ARENA] = context.arena

        def put(base: int, tensor: Tensor) -> None:
            tensors[base] = tensor
            addresses[base] = tensor.data_ptr()

        for base, tensor in zip(self.inputs, inputs, strict=True):
            put(base, tensor.contiguous())
        for fresh in self.fresh:
            put(fresh.base, torch.empty_like(fresh.form, memory_format=torch.contiguous_format))
        for move in self.moves:
            addresses[move.base] = move.start + move.step * offset
        for check in self.checks:
            ctypes.c_int64.from_address(context.arena + check.offset).value = 0

        def resolve(found: Any) -> Any:
            if isinstance(found, Value):
                return self._tensor(found, context, tensors)
            if isinstance(found, tuple | list):
                return type(found)([resolve(part) for part in found])
            return found

        for item in self.items:
            if isinstance(item, NativeRun):
                image, address = context.image(len(item.template))
                addresses[SELF] = address
                addresses.take(item.bases, out=image, mode="clip")  # the default mode goes through another buffer
                image += item.template
                execute(self.level, address, item.count, context.workspace, item.work, self.threads)
                continue
            result = item.function(*resolve(item.args), **{k: resolve(v) for k, v in item.kwargs.items()})
            found = (result,) if isinstance(result, Tensor) else pytree.tree_leaves(result)
            for base, result in zip(item.results, found, strict=True):
                if isinstance(result, Tensor):
                    put(base, result.clone() if context.holds(result) else result.contiguous())
        for check in self.checks:
            place = ctypes.c_int64.from_address(context.arena + check.offset).value
            if place:
                check.refuse(place)

        def output(found: Any) -> Any:
            if isinstance(found, tuple | list):
                return type(found)([output(part) for part in found])
            if isinstance(found, Tensor):
                return found.clone()
            if not isinstance(found, Value):
                return found
            tensor = self._tensor(found, context, tensors)
            return tensor.clone() if found.buffer in self.places else tensor

        return output(self.outputs)

    def _tensor(self, value: Value, context: Context, tensors: Sequence[Tensor | None]) -> Tensor:
        if value.buffer in self.places:
            return context.tensor(value, self.places[value.buffer])
        constant = self.constants.get(value.buffer)
        tensor = constant if constant is not None else tensors[self.outside[value.buffer]]
        if tensor is None:
            raise CompilerBug(f"buffer {value.buffer} was never written")
        if tuple(tensor.shape) == value.shape and value.offset == 0 and value.dense:
            return tensor
        return tensor.as_strided(value.shape, value.stride, value.offset)
