"""The steps that kernels offer: which native function, on which operands, in how many units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tersor.backends.numba.attentionkernels import STRIPS
from tersor.backends.numba.build import (
    activation_kernel,
    multiply_kernel,
    norm_kernel,
    quantise_kernel,
    round_rows_kernel,
)
from tersor.backends.numba.elementwise import Activation
from tersor.backends.numba.features import Level, level_named
from tersor.backends.numba.layout import Layout, ceil_to
from tersor.backends.numba.microkernels import panel_work
from tersor.backends.numba.native.pool import Workspace, execute
from tersor.backends.numba.native.values import Operand
from tersor.backends.numba.quantiser import record_bytes
from tersor.backends.numba.rounding import round_work
from tersor.backends.numba.rowkernels import NormSpec

_BLOCK_BYTES = 1 << 18  # rounded activations of a row block: they stay in the second-level cache
_ROWS = 12  # row blocks are multiples of most tiles
_ALONE = 12_000.0  # nanoseconds of work below which a step is not worth sharing
_SHARE = 3_000.0  # and the least a chunk should hold
_READ = 12.0  # bytes of weights a nanosecond, from beyond the second-level cache


@dataclass(frozen=True)
class Step:
    """kernel(operands, first, last, work) over `units` units of about `cost` nanoseconds; `work` bytes of scratch."""

    name: str
    kernel: int
    operands: tuple[Operand, ...]
    units: int
    cost: float
    work: int = 0

    def chunk(self, threads: int) -> int:
        """Units claimed at once on so many threads."""
        if threads < 2 or self.units * self.cost < _ALONE:
            return max(self.units, 1)
        return max(int(_SHARE / self.cost), -(-self.units // (4 * threads)), 1)


def quantise_step(
    level: str, layout: Layout, rows: int, x: Operand, x_stride: int, q: Operand, records: Operand
) -> Step:
    """Round `rows` rows of floats at x to codes at q (rows * layout.padded bytes) and records."""
    per_span = layout.activation_span // layout.group
    lanes = level_named(level).lanes
    if per_span == 1 and rows >= lanes and layout.padded == layout.columns:
        block = 2 * lanes
        places = (rows, block, x, x_stride, q, records, layout.group, layout.groups)
        work = round_work(level_named(level), layout.group)
        cost = 0.07 * layout.padded * block
        return Step("quantise", round_rows_kernel(level), places, -(-rows // block), cost, work)
    shape = (layout.columns, layout.group, layout.groups, per_span)
    operands = (x, x_stride, q, records, *shape)
    kernel = quantise_kernel(level)
    return Step("quantise", kernel, operands, rows, 0.1 * layout.padded, 4 * layout.padded)


def panel_cost(level: Level, layout: Layout, panel: int, rows: int) -> float:
    """About how many nanoseconds it takes to read `panel` rows of a matrix and multiply them with `rows` rows."""
    return panel * layout.padded * (rows / level.products + layout.width / 8 / _READ)


def rounded_bytes(layout: Layout, rows: int) -> tuple[int, int]:
    """Sizes of q and records for `rows` rows."""
    return rows * layout.padded, rows * record_bytes(layout.groups)


def raised_bytes(layout: Layout, rows: int) -> int:
    """Scratch for `rows` rows of activations as codes that are kept signed want them, padded to cache lines."""
    return ceil_to(rows * layout.padded, 64) if layout.room else 0


def multiply_step(
    level: str,
    layout: Layout,
    activation: Activation,
    rows: int,
    rounded: tuple[Operand, Operand],
    weights: tuple[Operand, Operand, Operand, Operand],
    y: Operand,
    looked_up: bool = False,
    resident: bool = False,
) -> Step:
    """y (rows, layout.rows) from rounded activations (q, records) and packed (codes, scale, shift or levels, bias);
    `resident`: codes that are in the caches already.
    """
    panel = level_named(level).panel
    block = min(max(rows, 1), max(_ROWS, _BLOCK_BYTES // layout.padded // _ROWS * _ROWS))
    activate = activation_kernel(level, activation)
    target = (y, 4 * layout.rows, layout.rows, layout.group, layout.groups, activate, block)
    units = -(-rows // block) * -(-layout.rows // panel)
    cost = panel_cost(level_named(level), layout, panel, block)
    kernel = multiply_kernel(level, layout, looked_up, resident)
    work = 4 * panel * block + panel_work(level_named(level), layout) + raised_bytes(layout, block)
    return Step("multiply", kernel, (rows, *rounded, *weights, *target), units, cost, work)


@dataclass(frozen=True)
class Norm:
    """y = norm(z) with z = x + other, over the rows of a `shape` (rows, columns); `other` (0: none) repeats after
    `period` rows. z is written where there is another; it may be y. By the root mean square, or by mean and variance:
    then with a bias.
    """

    shape: tuple[int, int]
    x: Operand
    other: Operand
    period: int
    weight: Operand
    bias: Operand
    z: Operand
    y: Operand
    epsilon: float
    root: bool = False

    @property
    def operands(self) -> tuple[Operand, ...]:
        """As the kernels read them."""
        tensors = (self.x, self.other, self.period, self.weight, self.bias, self.z, self.y)
        return (self.shape[1], *tensors, float_bits(self.epsilon))


def norm_step(level: str, norm: Norm) -> Step:
    """The normalisation of all rows."""
    rows, columns = norm.shape
    return Step("norm", norm_kernel(NormSpec(level, norm.root)), norm.operands, rows, 0.3 * columns)


def attention_tile(level: str) -> int:
    """Queries taken at once: the mask is padded to a multiple of it."""
    return STRIPS * level_named(level).lanes


def float_bits(value: float) -> int:
    """The bits of a float32."""
    return int(np.float32(value).view(np.int32))


def run_now(level: str, steps: Sequence[Step]) -> None:
    """Run steps whose operands are all addresses and counts."""
    threads = torch.get_num_threads()
    rows = len(steps) * 4
    image = np.empty(rows + sum(len(step.operands) for step in steps), dtype=np.int64)
    place = rows
    for i, step in enumerate(steps):
        address = image.ctypes.data + 8 * place
        image[4 * i : 4 * i + 4] = step.kernel, address, step.units, step.chunk(threads)
        image[place : place + len(step.operands)] = [value for value in step.operands if isinstance(value, int)]
        place += len(step.operands)
    work = max((step.work for step in steps), default=0)
    execute(level, image.ctypes.data, len(steps), Workspace(), work, threads)
