"""A call of a compiled linear: everything that depends on the layout only is worked out once."""

from __future__ import annotations

import threading
from functools import cache

import torch
from torch import Tensor

from tersor.backends.numba.build import activation_address, linear_kernel
from tersor.backends.numba.elementwise import Activation
from tersor.backends.numba.features import level_named
from tersor.backends.numba.layout import Layout
from tersor.backends.numba.quantiser import record_bytes
from tersor.backends.numba.threads import spread

_BLOCK_BYTES = 1 << 18  # quantised activations of a row block: half of a 512 KiB second-level cache
_ROWS = 12  # row blocks and row splits are multiples of most tiles
_PARALLEL = 1 << 25  # multiply-adds below which a second thread gains nothing (about 100 us of work)

_local = threading.local()


def workspace(size: int) -> int:
    """Address of at least `size` bytes of this thread's scratch memory, valid until its next call."""
    held: Tensor | None = getattr(_local, "memory", None)
    if held is None or held.numel() < size:
        held = _local.memory = torch.empty(max(size, 1 << 16), dtype=torch.uint8)
    return held.data_ptr()


class LinearPlan:
    """activation(x @ w^T + bias) for packed w of one layout, on one CPU level."""

    def __init__(self, layout: Layout, activation: Activation, level_name: str) -> None:
        level = level_named(level_name)
        self.layout = layout
        self._kernel = linear_kernel(level, layout)
        self._panel = level.panel
        self._panels = -(-layout.rows // level.panel)
        self._block = max(_ROWS, _BLOCK_BYTES // layout.padded // _ROWS * _ROWS)
        self._row_bytes = layout.padded + record_bytes(layout.groups) + 4 * level.panel
        self._shape = (
            layout.columns,
            layout.group,
            layout.groups,
            layout.activation_span // layout.group,
            layout.center,
        )
        self._activate = activation_address(level, activation)
        self._panel_codes = layout.padded * level.panel * layout.width // 8
        self._panel_scales = 4 * level.panel * (layout.groups if layout.kind == "group" else 1)

    def __call__(self, x: Tensor, codes: Tensor, scale: Tensor, shift: Tensor | None, bias: Tensor) -> Tensor:
        """x (..., columns) float32, contiguous; returns (..., rows) float32."""
        layout = self.layout
        y = x.new_empty((*x.shape[:-1], layout.rows))
        count = x.numel() // layout.columns
        if count == 0:
            return y
        pointers = (codes.data_ptr(), scale.data_ptr(), 0 if shift is None else shift.data_ptr(), bias.data_ptr())
        if count * layout.rows * layout.columns >= _PARALLEL and (threads := torch.get_num_threads()) > 1:
            self._parallel(count, x.data_ptr(), y.data_ptr(), pointers, threads)
        else:
            self._run(count, x.data_ptr(), y.data_ptr(), *pointers, layout.rows)
        return y

    def _run(self, count: int, x: int, y: int, codes: int, scale: int, shift: int, bias: int, outputs: int) -> None:
        block = min(count, self._block)
        work = workspace(block * self._row_bytes + 4 * self.layout.padded)
        x_stride, y_stride = 4 * self.layout.columns, 4 * self.layout.rows
        self._kernel(
            count, x, x_stride, y, y_stride, work, block, codes, scale, shift, bias, outputs, *self._shape,
            self._activate
        )  # fmt: skip

    def _parallel(self, count: int, x: int, y: int, pointers: tuple[int, int, int, int], threads: int) -> None:
        """Split the rows where there are many, else the panels."""
        layout = self.layout
        if count >= 4 * _ROWS * threads:
            step = max(_ROWS, -(-count // (2 * threads)) // _ROWS * _ROWS)

            def rows(chunk: int) -> None:
                first = chunk * step
                here = min(step, count - first)
                self._run(here, x + 4 * layout.columns * first, y + 4 * layout.rows * first, *pointers, layout.rows)

            spread(rows, -(-count // step), threads)
            return
        step = max(1, -(-self._panels // (2 * threads)))
        codes, scale, shift, bias = pointers

        def panels(chunk: int) -> None:
            first = chunk * step
            outputs = min(step * self._panel, layout.rows - first * self._panel)
            offset = 4 * self._panel * first
            moved = (codes + first * self._panel_codes, scale + first * self._panel_scales)
            self._run(count, x, y + offset, *moved, shift + first * self._panel_scales, bias + offset, outputs)

        spread(panels, -(-self._panels // step), threads)


@cache
def plan(
    rows: int,
    columns: int,
    width: int,
    weight_group: int,
    activation_group: int,
    shifted: bool,
    activation: Activation,
    level: str,
) -> LinearPlan:
    """The plan for a layout, compiled on first use."""
    return LinearPlan(Layout(rows, columns, width, weight_group, activation_group, shifted), activation, level)
