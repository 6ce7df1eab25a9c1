"""A kernel is trusted on this CPU only after it has agreed with the exact reference."""

from __future__ import annotations

import warnings
from functools import cache

import torch

from tersor.backends.numba import ops
from tersor.backends.numba.elementwise import Activation
from tersor.backends.numba.features import Level, below, level_named
from tersor.backends.numba.layout import AffineCodes, Layout, pack_bias, pack_codes, pack_groups, pack_shift
from tersor.backends.numba.microkernels import packed_rows
from tersor.backends.numba.reference import reference_linear
from tersor.compiler.stores.sums import shrunk

# Float rounding: a few operations per group on sums of a few hundred terms. A wrong code or lane is off by far more.
_TOLERANCE = 1e-5


def linear_agrees(level: Level, layout: Layout, activation: Activation) -> bool:
    """Whether the compiled linear of this layout agrees with the reference, on a small matrix with every kind of
    edge.
    """
    group = max(layout.weight_group, layout.activation_group)
    small = Layout(
        level.panel + 3,
        2 * (group or 32) + 5,
        layout.bits,
        layout.weight_group,
        layout.activation_group,
        layout.shifted,
        layout.room,
    )
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1 << layout.bits, (small.rows, small.columns), dtype=torch.uint8, generator=generator)
    codes[0], codes[1] = 0, (1 << layout.bits) - 1
    if layout.room:
        codes = (shrunk(codes.to(torch.int16) - small.center, small.room) + small.center).to(torch.uint8)
    groups = -(-small.columns // small.weight_group) if small.weight_group else 1
    scale = torch.rand(small.rows, groups, generator=generator) + 0.5
    zero = torch.full_like(scale, small.center)
    if small.shifted:
        zero += torch.randn(zero.shape, generator=generator)
    bias = torch.randn(small.rows, generator=generator)
    rows = sum(level.row_tiles)  # a tile of every size, over packed codes and over expanded ones
    x = torch.randn(packed_rows(level, layout.width) + rows, small.columns, generator=generator)
    x[0] = 3.0  # every activation at its extreme
    shift = pack_shift(AffineCodes(codes, scale, zero, small.bits, small.weight_group), small, level)
    packed = (pack_codes(codes, small, level), pack_groups(scale, small, level), shift, pack_bias(bias, small, level))
    shape = (small.rows, small.columns, small.bits, small.room, small.weight_group, small.activation_group)
    expected = reference_linear(x, codes, scale, zero, bias, small, activation)
    for count in (1, 2, rows, len(x)):
        y = ops.quantized_linear(x[:count], *packed, *shape, activation, level.name)
        if not bool((y - expected[:count]).abs().max() <= _TOLERANCE * expected.abs().max()):
            return False
    return True


@cache
def _linear_agrees(
    level: str, bits: int, weight_group: int, activation_group: int, shifted: bool, room: int, activation: Activation
) -> bool:
    layout = Layout(1, 1, bits, weight_group, activation_group, shifted, room)
    return linear_agrees(level_named(level), layout, activation)


def agrees(level: Level, layout: Layout, activation: Activation) -> bool:
    """Whether the kernel of a layout agrees with the reference at a level; warns where it does not."""
    key = (layout.bits, layout.weight_group, layout.activation_group, layout.shifted, layout.room, activation)
    found = _linear_agrees(level.name, *key)
    if not found:
        _warn(level, str(layout))
    return found


def _warn(level: Level, what: str) -> None:
    warnings.warn(
        f"the {level.name} kernel for {what} disagrees with its reference on this CPU; trying a slower one",
        stacklevel=4,
    )


def trusted_level(level: Level | None, layout: Layout, activation: Activation) -> Level | None:
    """`level` if its kernel agrees with the reference here, else the next slower one that does, else None."""
    while level is not None and not agrees(level, layout, activation):
        level = below(level)
    return level
