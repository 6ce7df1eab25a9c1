"""The kernel layout of a quantised matrix, and its inverse.

A matrix w[n, k] = scale[n, g] * (code[n, k] - zero[n, g]) is cut into panels of `level.panel` outputs. In a panel, four
consecutive k of one output lie in one 32-bit lane:

    codes  [panel][k / (4 * per)][strip][lane][4]      uint8, `per` = 8 // width k-quads share a byte, the first in the
    low bits
    scale  [panel][group][strip * lane]                float32
    shift  [panel][group][strip * lane]                float32, scale * (center - zero); absent if every zero is the
    center
    starts [panel][group][strip * lane]                int32, -128 * sum of (code - center); with `room`, where codes
    are kept as code - center

with center = 2^(bits - 1). Padded codes meet padded activations, which are 0; padded outputs have scale 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.backends.numba.features import Level
from tersor.compiler.errors import RequestError
from tersor.compiler.stores.sums import room_of

Kind = Literal["row", "activation", "group"]

STEP = 32  # columns a kernel takes at once; every group is a multiple of it
MAX_COLUMNS = 65536  # |255 * 127 * K| < 2^31 up to here


def ceil_to(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` not below `value`."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Layout:
    """Shape and grouping of one matrix of codes below 2^bits.

    `weight_group` is the number of columns that share a weight scale (0: the whole row), `activation_group` the number
    that share an activation scale (0: the whole row). `room` products of these very codes with bytes fit 16 bits (see
    `compiler.stores.sums`); 0: as many as of any codes.
    """

    rows: int
    columns: int
    bits: int
    weight_group: int = 0
    activation_group: int = 0
    shifted: bool = False
    room: int = 0

    def __post_init__(self) -> None:
        if self.room and (width_of(self.bits) < 8 or self.shifted):
            raise RequestError(f"codes of {self.bits} bits{' with a shift' * self.shifted} are not kept signed")
        width_of(self.bits)
        if not 1 <= self.columns <= MAX_COLUMNS or self.rows < 1:
            raise RequestError(
                f"a quantised matrix of shape {(self.rows, self.columns)}: 1 to {MAX_COLUMNS} columns are supported"
            )
        for group in (self.weight_group, self.activation_group):
            if group % STEP or group < 0:
                raise RequestError(
                    f"a group of {group} columns: groups are multiples of {STEP}, or 0 for the whole row"
                )
        small, large = sorted((self.weight_group, self.activation_group))
        if small and large % small:
            raise RequestError(f"groups of {small} and {large} columns: one must divide the other")

    @property
    def width(self) -> int:
        """Bits in which a code is laid out."""
        return width_of(self.bits)

    @property
    def kind(self) -> Kind:
        """Which micro-kernel: weight groups, activation groups only, or neither."""
        return "group" if self.weight_group else "activation" if self.activation_group else "row"

    @property
    def center(self) -> int:
        """What is taken from every code in integers."""
        return 1 << (self.bits - 1)

    @property
    def group(self) -> int:
        """Columns that share both scales."""
        both = [g for g in (self.weight_group, self.activation_group) if g]
        return min(both) if both else ceil_to(self.columns, STEP)

    @property
    def padded(self) -> int:
        """Columns with padding."""
        return ceil_to(self.columns, self.group)

    @property
    def groups(self) -> int:
        return self.padded // self.group

    @property
    def activation_span(self) -> int:
        """Columns that share an activation scale: at most `group` unless it is the whole row."""
        return self.group if self.activation_group else self.padded


def width_of(bits: int) -> int:
    """The layout width for codes of `bits` bits."""
    if not 1 <= bits <= 8:
        raise RequestError(f"codes of {bits} bits: 1 to 8 are supported")
    return 2 if bits <= 2 else 4 if bits <= 4 else 8


def kernel_bits(bits: int, level: Level) -> int:
    """How many bits the kernels of a level take codes of `bits` bits for: all that are laid out alike are one, but
    where products are summed in 16 bits and fewer bits are faster.
    """
    return bits if level.in_pairs and bits > 4 else width_of(bits)


@dataclass(frozen=True)
class AffineCodes:
    """w[n, k] = scale[n, g] (codes[n, k] - zero[n, g]), g = k // group (0: one group a row).

    codes (rows, columns) uint8 below 2^bits; scale and zero (rows, groups), converted to float32.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    group: int = 0

    def __post_init__(self) -> None:
        codes = self.codes
        if codes.dim() != 2 or codes.dtype != torch.uint8:
            raise RequestError(f"codes are a uint8 matrix, not {codes.dtype} of shape {tuple(codes.shape)}")
        width_of(self.bits)
        if self.group < 0 or self.group % STEP:
            raise RequestError(
                f"a group of {self.group} columns: groups are multiples of {STEP}, or 0 for the whole row"
            )
        groups = -(-self.columns // self.group) if self.group else 1
        for name in ("scale", "zero"):
            values = getattr(self, name)
            if tuple(values.shape) != (self.rows, groups):
                wanted = (self.rows, groups)
                raise RequestError(f"{name} has shape {tuple(values.shape)}; these codes and groups need {wanted}")
            object.__setattr__(self, name, values.detach().float())
        if codes.numel() and int(codes.max()) >= 1 << self.bits:
            raise RequestError(f"a code is {int(codes.max())}; {self.bits} bits go to {(1 << self.bits) - 1}")

    @property
    def rows(self) -> int:
        return int(self.codes.shape[0])

    @property
    def columns(self) -> int:
        return int(self.codes.shape[1])

    def centred(self, bits: int) -> AffineCodes:
        """The same matrix in codes of `bits` bits, not fewer, with their center as zero point if all zero points are
        one integer and the codes allow it.
        """
        wider = replace(self, bits=bits)
        center = 1 << (bits - 1)
        first = float(self.zero.flatten()[0]) if self.zero.numel() else 0.0
        move = center - first
        if move == 0 or not move.is_integer() or bool((self.zero != first).any()) or not self.codes.numel():
            return wider
        low, high = int(self.codes.min()) + int(move), int(self.codes.max()) + int(move)
        if low < 0 or high >= 1 << bits:
            return wider
        moved = (self.codes.to(torch.int16) + int(move)).to(torch.uint8)
        return replace(wider, codes=moved, zero=torch.full_like(self.zero, center))

    @property
    def center(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def shifted(self) -> bool:
        """Whether a zero point is not the center."""
        return bool((self.zero != self.center).any())


def room_for(codes: AffineCodes, level: Level) -> int:
    """How many products of these codes fit 16 bits where a level sums them so, if more than of any codes of as many
    bits, and they have their center as zero point; else 0.
    """
    if not level.in_pairs or codes.bits < 7 or codes.shifted:
        return 0
    room, of_any = room_of(codes.codes, codes.center), 1 if codes.bits == 7 else 0
    return room if room > of_any else 0


def pack_codes(codes: Tensor, layout: Layout, level: Level) -> Tensor:
    """Codes (rows, columns) uint8 to the panel layout."""
    per = 8 // layout.width
    panels = -(-layout.rows // level.panel)
    full = codes.new_zeros(panels * level.panel, layout.padded)
    full[: layout.rows, : layout.columns] = codes - layout.center if layout.room else codes
    quads = full.view(torch.int32).view(panels, level.panel, layout.padded // (4 * per), per)  # are moved as one
    packed = quads[..., 0].transpose(1, 2).contiguous().view(torch.uint8)
    for position in range(1, per):
        packed |= quads[..., position].transpose(1, 2).contiguous().view(torch.uint8) << (layout.width * position)
    return packed.reshape(-1)


def unpack_codes(packed: Tensor, layout: Layout, level: Level) -> Tensor:
    """The inverse of `pack_codes`."""
    per = 8 // layout.width
    panels = -(-layout.rows // level.panel)
    split = packed.view(panels, layout.padded // (4 * per), level.strips, level.lanes, 4)
    mask = (1 << layout.width) - 1
    planes = torch.stack([(split >> (layout.width * position)) & mask for position in range(per)])
    full = planes.permute(1, 3, 4, 2, 0, 5).reshape(panels * level.panel, layout.padded)
    found = full[: layout.rows, : layout.columns]
    return found + layout.center if layout.room else found


def pack_groups(values: Tensor, layout: Layout, level: Level) -> Tensor:
    """Values per (row, group) to the panel layout, repeated where the kernel's groups are finer than the weight's."""
    if layout.kind == "group":
        values = values.repeat_interleave(layout.weight_group // layout.group, dim=1)[:, : layout.groups]
    return _to_panels(values.to(torch.float32), level)


def pack_shift(held: AffineCodes, layout: Layout, level: Level) -> Tensor | None:
    """What lies in the place of the shift: it, the starts of codes that are kept signed, or nothing."""
    if layout.room:
        padded = F.pad(held.codes, (0, layout.padded - layout.columns), value=layout.center)
        sums = padded.view(layout.rows, layout.groups, layout.group).sum(-1, dtype=torch.int32)
        return _to_panels(-128 * (sums - layout.center * layout.group), level)
    return pack_groups(held.scale * (held.center - held.zero), layout, level) if layout.shifted else None


def _to_panels(values: Tensor, level: Level) -> Tensor:
    """(rows, count) to [panel][count][strip * lane], the last panel filled up with zeros."""
    rows, count = values.shape
    full = F.pad(values, (0, 0, 0, -rows % level.panel))
    return full.view(-1, level.panel, count).transpose(1, 2).reshape(-1).contiguous()


def unpack_groups(packed: Tensor, layout: Layout, level: Level) -> Tensor:
    """(rows, groups of the kernel) from `pack_groups`."""
    panels = -(-layout.rows // level.panel)
    count = packed.numel() // (panels * level.panel)
    return packed.view(panels, count, level.panel).transpose(1, 2).reshape(panels * level.panel, count)[: layout.rows]


def pack_bias(bias: Tensor | None, layout: Layout, level: Level) -> Tensor:
    """The bias, or zeros, padded to whole panels."""
    full = torch.zeros(ceil_to(layout.rows, level.panel), dtype=torch.float32)
    if bias is not None:
        full[: layout.rows] = bias
    return full


def dense(codes: Tensor, scale: Tensor, shift: Tensor | None, layout: Layout, level: Level) -> Tensor:
    """The matrix (rows, columns) that packed tensors stand for."""
    signed = unpack_codes(codes, layout, level).float() - layout.center

    def spread(packed: Tensor) -> Tensor:
        values = unpack_groups(packed, layout, level)
        repeat = layout.group if values.shape[1] > 1 else layout.columns
        return values.repeat_interleave(repeat, dim=1)[:, : layout.columns]

    matrix = signed * spread(scale)
    return matrix + spread(shift) if shift is not None and layout.shifted else matrix
