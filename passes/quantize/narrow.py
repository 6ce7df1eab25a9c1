"""Ranges wide enough that the products of the codes can be summed in 16 bits (`compiler.stores.sums`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tersor.compiler.errors import CompilerBug
from tersor.compiler.method import Refusal
from tersor.compiler.stores import Affine, Codes, Dense
from tersor.compiler.stores.affine import group_count
from tersor.compiler.stores.sums import excess

Accumulator = Annotated[
    Literal[16, 32],
    Field(
        description="bits in which a kernel without dot products of four bytes (AVX2) adds products first: with 16 the "
        "ranges of symmetric levels are widened until sums fit, at 8 bits those of pairs, at 7 those of two pairs"
    ),
]
_TURNS = 64
_MORE = 1.005  # beyond what was missing, since rounding may go up again


def refused(accumulator: int, symmetric: bool) -> Refusal | None:
    """Sums fit by the signs of weights around a zero in the middle."""
    if accumulator == 16 and not symmetric:
        return Refusal("accumulator = 16 needs levels symmetric around zero: say symmetric = true")
    return None


def narrow(weight: Tensor, bits: int, group: int, make: Callable[[Tensor, Tensor], Affine]) -> Affine:
    """A symmetric store whose codes fit; `make(rows, ratio)` gives that of some rows with the range of each of their
    groups multiplied by `ratio` (rows, groups). Up to 6 bits all codes do.
    """
    ratio = torch.ones(weight.shape[0], group_count(weight.shape[1], group))
    store = make(weight, ratio)
    if bits < 7:
        return store
    codes, scale, center = store.codes.values, store.scale.values, 1 << (bits - 1)
    left = torch.arange(len(weight))
    for _ in range(_TURNS):
        missing = excess(codes[left].to(torch.int16) - center, 9 - bits, group)
        found = (missing > 1).any(1)
        left, missing = left[found], missing[found]
        if not left.numel():
            return Affine(Codes(codes, bits), Dense.of(scale, "float16"), None, store.group, store.input_group)
        ratio[left] *= torch.where(missing > 1, _MORE * missing, 1.0)
        part = make(weight[left], ratio[left])
        codes[left], scale[left] = part.codes.values, part.scale.values
    raise CompilerBug(f"ranges of {bits} bits did not come to fit sums of 16 bits in {_TURNS} turns")
