"""Kept values and their places."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tersor.backends.numba.denselinear import DenseLinear
from tersor.backends.numba.densepacking import narrowed
from tersor.backends.numba.forms.dense import dense_embedding
from tersor.backends.numba.forms.form import Form, Target
from tersor.backends.numba.forms.rounded import rounded_linear
from tersor.backends.numba.gather import GatheredEmbedding
from tersor.backends.numba.linear import QuantizedLinear
from tersor.backends.numba.rows import Table
from tersor.backends.numba.sparselinear import SparseLinear
from tersor.backends.numba.sparseops import MOST_COLUMNS
from tersor.compiler.stores import Affine, Bitmask, Codebook, Delta, Store

DENSEST = 0.25
"""Up to this share of kept weights the sparse kernel is faster than one in floating point over all of them."""

DENSEST_CODES = 0.06
"""And up to this one than the 8-bit kernel, from one token to many."""


def kept_values(store: Store) -> Store | None:
    """The store of the kept values, None where nothing is left out."""
    return store.values if isinstance(store, Bitmask | Delta) else None


def kept_mask(store: Store) -> Tensor:
    """True (rows, columns) where a value is kept."""
    if isinstance(store, Bitmask):
        return store.mask.values.to(torch.bool)
    mask = torch.zeros(store.shape, dtype=torch.bool)
    if isinstance(store, Delta):
        mask.view(-1)[store.positions.values.to(torch.int64)] = True
    return mask


def _codes(store: Store, values: Affine, bias: Tensor | None, target: Target) -> QuantizedLinear | None:
    """The linear over the codes as they are: one scale for all, and what is not kept has the zero point as its code.
    None where the scales are several, or the zero point is not a code.
    """
    if values.scale.values.numel() != 1:
        return None
    bits = values.bits_per_code
    center = float(1 << (bits - 1))
    zero = center if values.zero is None else float(values.zero.values.reshape(-1)[0])
    codes = torch.full(store.shape, int(zero), dtype=torch.uint8)
    codes[kept_mask(store)] = values.codes.values.detach().reshape(-1)
    scale = values.scale.dense().detach().reshape(1, 1).expand(store.shape[0], 1)
    options = (bits, bias, "none", target.group(values.input_group), 0, target.level.name)
    return QuantizedLinear.from_codes(codes, scale, torch.full_like(scale, zero), *options)  # type: ignore[arg-type]


def masked_embedding(table: Tensor, mask: Tensor, target: Target) -> GatheredEmbedding:
    """Rows of a table that is 0 outside of the mask, sparse where that takes less memory."""
    rows, columns = table.shape
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    dense_bytes = table.numel() * narrowed(table).stored.element_size()
    if columns > MOST_COLUMNS or 6 * int(starts[-1]) + 8 * rows >= dense_bytes:
        return dense_embedding(table, target)
    places = mask.nonzero()[:, 1].to(torch.int16)  # read as unsigned
    return GatheredEmbedding.of("sparse", Table(rows, columns, (table[mask], places, starts)), target.level.name)


class SparseForm(Form):
    """w = the kept values in their places, zero elsewhere.

    A linear stays sparse, in floating point, where few enough are kept; else it runs on the dense kernel of the values'
    own precision: codes with one scale as they are, other codes rounded to 8 bits (see `rounded`), floating values in
    floating point. An embedding stays sparse where that takes less memory.
    """

    def linear(self, store: Store, bias: Tensor | None, target: Target) -> nn.Module:
        values = kept_values(store)
        coded = isinstance(values, Affine | Codebook)
        rows, columns = store.shape
        share = int(kept_mask(store).sum()) / (rows * columns)
        if columns <= MOST_COLUMNS and share <= (DENSEST_CODES if coded else DENSEST):
            return SparseLinear.from_weight(store.dense(), bias, "none", target.level.name)
        if isinstance(values, Affine):
            exact = _codes(store, values, bias, target)
            if exact is not None:
                return exact
        if coded:
            return rounded_linear(store.dense().detach(), bias, target)
        return DenseLinear.from_weight(store.dense(), bias, "none", target.level.name)

    def embedding(self, store: Store, target: Target) -> GatheredEmbedding:
        return masked_embedding(store.dense().detach(), kept_mask(store), target)
