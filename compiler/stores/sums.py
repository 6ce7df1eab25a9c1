"""Codes whose products with bytes can be summed in 16 bits.

A processor without a dot product of four bytes multiplies pairs of them and adds the two products in 16 bits, signed:
with u = 0..255 and weights w between them

    |u_1 w_1 + u_2 w_2 + ...| <= 255 max(sum of the positive w, sum of the negative -w) < 2^15

where neither sum is above 128. If that holds for the four weights that two pairs in the same place of neighbouring
quads of columns make up, two products may be added before they are widened to 32 bits; if it holds for every pair, none
saturates (Khudia et al., "FBGEMM: Enabling High-Performance Low-Precision Deep Learning Inference", 2021, 16-bit
accumulation).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MOST = 128
ROWS = 4096


def one_sided(weights: Tensor, room: int) -> Tensor:
    """The larger of the two sums of weights of one sign, for every sum of `room` products: integers (rows, columns) ->
    (rows, columns / (4 room), 2), the last columns filled up with zeros.
    """
    filled = F.pad(weights.to(torch.int16), (0, -weights.shape[1] % (4 * room)))
    lanes = filled.view(len(weights), -1, room, 2, 2)
    above, below = (part.clamp(min=0).sum((2, 4), dtype=torch.int16) for part in (lanes, -lanes))
    return torch.maximum(above, below)


def shrunk(weights: Tensor, room: int) -> Tensor:
    """The same integers, those of sums that are too large moved towards 0 in proportion until they fit."""
    factor = MOST / one_sided(weights, room).clamp(min=MOST).to(torch.float32)
    spread = factor[:, :, None, :, None].expand(-1, -1, room, -1, 2).reshape(len(weights), -1)
    return (weights * spread[:, : weights.shape[1]]).trunc().to(weights.dtype)


def room_of(codes: Tensor, center: int) -> int:
    """How many products of the weights code - center, codes (rows, columns), can be added in 16 bits: 2, 1, or 0."""
    room = 2
    for part in codes.split(ROWS):  # sums of a large table would take several times its memory
        weights = part.to(torch.int16) - center
        while room and bool((one_sided(weights, room) > MOST).any()):
            room -= 1
    return room


def excess(weights: Tensor, room: int, group: int) -> Tensor:
    """By how much the largest sum of every `group` columns of a row is too large: (rows, columns) -> (rows, groups), at
    most 1 where all fit. A group is a multiple of 8 columns, or the whole row.
    """
    sums = one_sided(weights, room).amax(-1)
    blocks = max(1, group // (4 * room)) if group < weights.shape[1] else sums.shape[1]
    grouped = F.pad(sums, (0, -sums.shape[1] % blocks)).view(len(sums), -1, blocks)
    return grouped.amax(-1).to(torch.float32) / MOST
