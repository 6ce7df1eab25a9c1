"""Uniform k-bit quantisation per group (survey section 3.3.1, equations 36-39; `quant.uniform`).

With levels 0..L, L = 2^bits - 1, and for each group of columns of a row

    asymmetric:  s = (max(w, 0) - min(w, 0)) / L,   z = round(-min(w, 0) / s),   c = clamp(round(w / s) + z, 0, L)
    symmetric:   s = max|w| / (2^(bits-1) - 1),     z = 2^(bits-1),              c = clamp(round(w / s) + z, 1, L)
    what it stands for:  s (c - z)

Zero is always a level. Scales are stored in 16 bits, zero points in `bits` bits. With `clip` the range is shrunk by the
factor in 1, 0.95, ..., 0.5 that leaves the least squared error in the group. With `rounding = compensated` the codes
are found column by column (`compensate`) once the data has shown which directions matter; prices are those of
rounding to nearest, corrected by measured choices (`compiler/measure/contenders.py`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tersor.compiler.method import Context, Method, Params, Refusal
from tersor.compiler.stores import Affine, Codes, Dense
from tersor.compiler.stores.affine import group_count, spread
from tersor.passes.quantize.compensate import ROWS, compensated, inverse_factor
from tersor.passes.quantize.inputs import USUAL, Activations, columns_of
from tersor.passes.quantize.narrow import Accumulator, narrow, refused

Group = Literal[32, 64, 128, "row"]
CLIPS = tuple(1 - 0.05 * i for i in range(11))


class Uniform(Params):
    bits: Annotated[int, Field(ge=2, le=8, description="bits per weight")] = 8
    group: Annotated[Group, Field(description="columns that share a scale; a wider group than the row is the row")] = 64
    symmetric: Annotated[bool, Field(description="levels symmetric around zero, no zero point stored")] = False
    clip: Annotated[bool, Field(description="search the range with the least squared error in each group")] = False
    rounding: Annotated[
        Literal["nearest", "compensated"],
        Field(description="`compensated` moves rounding errors into later columns; needs calibration data"),
    ] = "nearest"
    activations: Activations = USUAL
    accumulator: Accumulator = 32


def columns_per_group(group: Group, width: int) -> int:
    """`row` means all columns; a group wider than the row is the row."""
    return width if group == "row" else min(group, width)


def grouped(weight: Tensor, group: int) -> Tensor:
    """(rows, columns) -> (rows, groups, group), the last group filled up with its row's last value."""
    rows, columns = weight.shape
    missing = -columns % group
    if missing:
        weight = torch.cat([weight, weight[:, -1:].expand(rows, missing)], dim=1)
    return weight.reshape(rows, -1, group)


def half_scale(low: Tensor, high: Tensor, levels: int) -> Dense:
    """The largest 16-bit scale, from (high - low) / levels down, at which the ends of the range are `levels` codes
    apart.

    Rounding the scale up would leave the outer code unused; then packing would not be idempotent. Groups without a
    range get 1.
    """
    flat = high <= low
    exact = torch.where(flat, torch.ones_like(low), (high - low) / levels)
    scale = Dense.of(exact, "float16")
    stored = scale.state()[""].reshape(-1)
    # Groups whose scale still leaves a code unused; one whose scale is already 0 has none to lower.
    left = (~flat).reshape(-1).nonzero().squeeze(-1)
    lows, highs = low.reshape(-1), high.reshape(-1)
    for _ in range(24):
        values = Dense.build(left.shape, scale.meta(), {}, stored[left]).values
        divisor = values.clamp_min(torch.finfo(torch.float32).tiny)
        unused = (highs[left] / divisor).round() - (lows[left] / divisor).round() < levels
        left = left[unused & (values > 0)]
        if not left.numel():
            break
        stored[left] = (stored[left].view(torch.int16) - 1).view(torch.float16)
    return Dense.build(scale.shape, scale.meta(), {}, stored)


def affine_codes(weight: Tensor, scale: Dense, zero: Tensor, group: int, bits: int, least: int = 0) -> Tensor:
    """c = clamp(round(w / s) + z, least, 2^bits - 1) as uint8."""
    columns = weight.shape[1]
    divisor = scale.values.clamp_min(torch.finfo(torch.float32).tiny)
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    # Some rows at a time: the quotients of a large table would take as much memory as the table.
    for out, w, s, z in zip(*(t.split(ROWS) for t in (codes, weight, divisor, zero)), strict=True):
        if columns % group:
            quotient = torch.div(w, spread(s, columns, group)).round_().add_(spread(z, columns, group))
        else:
            parts = torch.div(w.reshape(len(w), -1, group), s.unsqueeze(-1))
            quotient = parts.round_().add_(z.unsqueeze(-1)).reshape(len(w), columns)
        out.copy_(quotient.clamp_(least, 2**bits - 1))
    return codes


def quantise(weight: Tensor, bits: int, group: int, symmetric: bool, ratio: Tensor | float = 1.0) -> Affine:
    """One affine store with every group's range multiplied by `ratio`."""
    parts = grouped(weight, group)
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    if symmetric:
        half = 2 ** (bits - 1)
        largest = torch.maximum(-low, high) * ratio
        scale = Dense.of(torch.where(largest > 0, largest / (half - 1), torch.ones_like(largest)), "float16")
        # Code 0 stays unused: levels are as many above zero as below it.
        codes = affine_codes(weight, scale, torch.full_like(largest, half), group, bits, least=1)
        return Affine(Codes(codes, bits), scale, None, group)
    low, high = low * ratio, high * ratio
    scale = half_scale(low, high, 2**bits - 1)
    zero = (-(low / scale.values.clamp_min(torch.finfo(torch.float32).tiny)).round()).clamp_(0, 2**bits - 1)
    codes = affine_codes(weight, scale, zero, group, bits)
    return Affine(Codes(codes, bits), scale, Codes(zero.to(torch.uint8), bits), group)


def best_ratio(weight: Tensor, bits: int, group: int, symmetric: bool) -> Tensor:
    """Per group the factor of `CLIPS` with the least squared error (the larger one on ties)."""
    best = torch.full((weight.shape[0], group_count(weight.shape[1], group)), float("inf"))
    chosen = torch.ones_like(best)
    for ratio in CLIPS:
        error = grouped((quantise(weight, bits, group, symmetric, ratio).dense() - weight).square(), group).sum(-1)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, ratio, chosen)
    return chosen


class UniformQuantisation(Method[Uniform]):
    id = "quant.uniform"
    title = "uniform k-bit quantisation"
    source = "survey section 3.3.1, equations 36-39"
    kinds = frozenset({"linear", "embedding", "recurrent"})
    by_row = True
    Params = Uniform

    def refuse(self, shape: tuple[int, ...], point: Uniform) -> Refusal | None:
        if len(shape) != 2 or 0 in shape:
            return Refusal(f"groups of columns need a matrix, not shape {shape}")
        return refused(point.accumulator, point.symmetric)

    def wants_form(self, point: Uniform) -> bool:
        return point.rounding == "compensated"

    def input_group(self, point: Uniform) -> int:
        # A kernel sums the columns of a group of weights at once: an input's group is no wider, unless it is the row.
        columns = columns_of(point.activations)
        return columns if not columns or point.group == "row" else min(columns, point.group)

    def weights(self, point: Uniform) -> Uniform:
        return point.model_copy(update={"activations": USUAL})

    def pack(self, tensor: Tensor, point: Uniform, context: Context = Context()) -> Affine:
        def fit(columns: Tensor, group: int, wider: Tensor) -> Affine:
            ratio = best_ratio(columns, point.bits, group, point.symmetric) if point.clip else 1.0
            return quantise(columns, point.bits, group, point.symmetric, ratio * wider)

        def make(rows: Tensor, wider: Tensor) -> Affine:
            if factor is None:
                return fit(rows, group, wider)
            return compensated(rows, factor, group, wider, lambda part, by: fit(part, part.shape[1], by))

        group = columns_per_group(point.group, tensor.shape[1])
        form = context.form if self.wants_form(point) else None
        factor = None if form is None else inverse_factor(form)
        if point.accumulator == 16:
            store = narrow(tensor, point.bits, group, make)
        else:
            store = make(tensor, torch.ones(len(tensor), group_count(tensor.shape[1], group)))
        return store.reading(self.input_group(point))

    def examples(self) -> tuple[Uniform, ...]:
        return tuple(Uniform(bits=bits) for bits in range(2, 9))
