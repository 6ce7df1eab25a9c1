"""An embedding over packed codes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from tersor.backends.numba import ops
from tersor.backends.numba.features import detect
from tersor.backends.numba.layout import STEP, AffineCodes, Layout
from tersor.backends.numba.selfcheck import trusted_embedding_level


def pack_rows(codes: Tensor, layout: Layout) -> Tensor:
    """Codes (rows, columns) uint8 row by row, padded; in 4 bits STEP codes in STEP / 2 bytes, the first half in the
    low bits.
    """
    full = codes.new_zeros(layout.rows, layout.padded)
    full[:, : layout.columns] = codes
    if layout.width == 8:
        return full.reshape(-1)
    halves = full.view(-1, 2, STEP // 2)
    return (halves[:, 0] | (halves[:, 1] << 4)).reshape(-1)


def unpack_rows(packed: Tensor, layout: Layout) -> Tensor:
    """The inverse of `pack_rows`."""
    if layout.width == 4:
        pairs = packed.view(-1, STEP // 2)
        packed = torch.stack([pairs & 15, pairs >> 4], dim=1)
    return packed.reshape(layout.rows, layout.padded)[:, : layout.columns]


class QuantizedEmbedding(nn.Module):
    """Rows w[index] of w[n, k] = scale[n, g] (code[n, k] - zero[n, g]), float32.

    index of any integer type and shape, result (*index.shape, columns); RequestError for an index out of range. Holds
    the packed tensors only. Where no compiled kernel can be trusted (`level` is None) it looks up in the dense table.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, layout: Layout, level: str | None, codes: Tensor, scale: Tensor, zero: Tensor) -> None:
        super().__init__()
        self.layout = layout
        self.level = level
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self._constants: Any = (layout.rows, layout.columns, layout.width, layout.weight_group, level)

    @classmethod
    def from_codes(
        cls, codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group: int = 0, level: str | None = None
    ) -> QuantizedEmbedding:
        """Pack codes (n, k) uint8 below 2^bits, scale and zero (n, groups); `group` columns share a scale, 0 for the
        row.

        RequestError for shapes, codes or groups that have no kernel.
        """
        held = AffineCodes(codes, scale, zero, bits, group)
        layout = Layout(held.rows, held.columns, max(held.width, 4), group)
        trusted = trusted_embedding_level(detect(level), layout.width)
        if trusted is None:
            warnings.warn(
                "no compiled kernel can be trusted on this CPU; quantised embeddings use a dense table", stacklevel=2
            )
        one = bool((held.zero == held.zero.flatten()[0]).all())
        origin = (held.zero.flatten()[:1] if one else held.zero.flatten()).clone()
        packed = pack_rows(codes, layout)
        return cls(layout, trusted.name if trusted else None, packed, held.scale.flatten().clone(), origin)

    def forward(self, index: Tensor) -> Tensor:
        if self.level is None:
            return nn.functional.embedding(index, self.dense())
        run = ops.quantized_embedding if ops.direct(index) else ops.embedding
        rows: Tensor = run(index, self.codes, self.scale, self.zero, *self._constants)
        return rows

    def dense(self) -> Tensor:
        """w (n, k) float32."""
        layout = self.layout

        def spread(values: Tensor) -> Tensor:
            if values.numel() == 1:
                return values
            grid = values.view(layout.rows, layout.groups)
            return grid.repeat_interleave(layout.group, dim=1)[:, : layout.columns]

        return (unpack_rows(self.codes, layout).float() - spread(self.zero)) * spread(self.scale)

    def extra_repr(self) -> str:
        layout = self.layout
        return f"{layout.rows}, {layout.columns}, width={layout.width}, group={layout.weight_group}, level={self.level}"
