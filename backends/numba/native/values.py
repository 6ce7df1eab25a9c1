"""Tensors of a program that is being built: a place in a buffer, a shape and strides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch

from tersor.compiler.errors import CompilerBug

NOWHERE, ARENA, SELF = range(3)  # bases an address can be relative to; further ones are tensors from outside


@dataclass(frozen=True)
class Ref:
    """An address: `offset` bytes into buffer `buffer`."""

    buffer: int
    offset: int = 0


Operand = int | Ref


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a dense row-major tensor, in elements."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


@dataclass(frozen=True)
class Value:
    """A strided tensor in a buffer; strides and offset in elements."""

    buffer: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @cached_property
    def dense(self) -> bool:
        """Whether the elements lie one after the other in order."""
        wanted = contiguous(self.shape)
        return all(n == 1 or s == w for n, s, w in zip(self.shape, self.stride, wanted, strict=True))

    @property
    def ref(self) -> Ref:
        return Ref(self.buffer, self.offset * self.dtype.itemsize)

    def viewed(self, shape: tuple[int, ...]) -> Value | None:
        """The same elements in another shape, if that needs no copy."""
        if -1 in shape:
            known = -prod(shape)
            shape = tuple(self.numel // known if n == -1 else n for n in shape) if known else shape
        if prod(shape) != self.numel:
            raise CompilerBug(f"{self.shape} viewed as {shape}")
        stride = _view_strides(self.shape, self.stride, shape)
        return None if stride is None else replace(self, shape=shape, stride=stride)

    def permuted(self, order: tuple[int, ...]) -> Value:
        return replace(self, shape=tuple(self.shape[i] for i in order), stride=tuple(self.stride[i] for i in order))

    def narrowed(self, dim: int, start: int, length: int) -> Value:
        shape = tuple(length if i == dim else n for i, n in enumerate(self.shape))
        return replace(self, shape=shape, offset=self.offset + start * self.stride[dim])


def _view_strides(old: tuple[int, ...], stride: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of the view, by torch itself on a tensor without memory."""
    try:
        return tuple(torch.empty_strided(old, stride, device="meta").view(new).stride())
    except RuntimeError:
        return None


@dataclass(frozen=True)
class Derived:
    """Another form of a value, which some steps read; everybody else reads the original."""

    original: Value
