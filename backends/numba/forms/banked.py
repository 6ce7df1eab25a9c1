"""As many kept blocks in every bank: codes or floats over the kept ones only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tersor.backends.numba.denselinear import DenseLinear
from tersor.backends.numba.forms.affine import operands
from tersor.backends.numba.forms.form import Form, Target
from tersor.backends.numba.forms.rounded import WORST, rounded, rounded_linear
from tersor.backends.numba.forms.sparse import DENSEST, masked_embedding
from tersor.backends.numba.gather import GatheredEmbedding
from tersor.backends.numba.sparselinear import SparseLinear
from tersor.backends.numba.sparseops import MOST_COLUMNS
from tersor.backends.numba.structure import Structure
from tersor.backends.numba.structurelinear import StructuredLinear
from tersor.compiler.errors import CompilerBug
from tersor.compiler.stores import Affine, Banked, Codebook, Store

DENSEST_BLOCKS = 0.5
"""Up to this share of kept weights a kernel over blocks is faster than that over all of them, in the same precision."""

DENSEST_FLOATS = 0.12
"""And up to this one a kernel over blocks of floats than the 8-bit kernel over all weights."""


def _banked(store: Store) -> Banked:
    if not isinstance(store, Banked):
        raise CompilerBug(f"a store of kind {store.kind} was taken for a banked one")
    return store


def structure_of(store: Banked, group: int = 0) -> tuple[Structure, Tensor]:
    """The structure, and the numbers of blocks in their row, or of columns in their bank."""
    grid = store.grid
    blocks = store.blocks()
    (rows, columns), single = grid.shape, (grid.height, grid.width) == (1, 1)
    if single:
        kept = store.kept // grid.banks
        return Structure(rows, columns, 1, 1, grid.bank, kept, group), blocks % grid.bank
    return Structure(rows, columns, grid.height, grid.width, 0, store.kept, group), blocks


def kept_places(store: Banked) -> Tensor:
    """True (rows, columns) where a value is kept."""
    grid = store.grid
    mask = torch.zeros(grid.block_rows, grid.blocks * grid.width, dtype=torch.bool)
    mask.scatter_(1, store.columns(), True)
    return mask.repeat_interleave(grid.height, 0)[: store.shape[0], : store.shape[1]]


def signed_codes(values: Store) -> tuple[Tensor, Tensor, int] | None:
    """Signed bytes, scales (rows, groups) and the columns of a group (0: all), where the values are such codes or
    change little by rounding to them; else None.
    """
    if isinstance(values, Affine):
        codes, scale, zero, _, group = operands(values)
        centers = zero.to(torch.int16)
        if group:
            centers = centers.repeat_interleave(group, 1)[:, : codes.shape[1]]
        moved = codes.to(torch.int16) - centers
        if int(moved.min()) >= -128 and int(moved.max()) <= 127:
            return moved.to(torch.int8), scale.float(), group
    elif not isinstance(values, Codebook):
        return None
    unsigned, scale, error = rounded(values.dense().detach(), 0)
    return ((unsigned.to(torch.int16) - 128).to(torch.int8), scale, 0) if error <= WORST else None


class BankedForm(Form):
    """w = the kept values in their blocks, zero elsewhere.

    Codes run on the integer kernels over what is kept, activations rounded with one scale per row; floats in blocks on
    the floating one. Where neither is faster than a kernel over all weights that one runs: of banks of floats, of dense
    blocks, of codes in blocks that no byte kernel takes. An embedding stays sparse where that takes less memory.
    """

    def linear(self, store: Store, bias: Tensor | None, target: Target) -> nn.Module:
        held = _banked(store)
        columns = held.shape[1]
        share = held.kept / held.grid.blocks
        coded = isinstance(held.values, Affine | Codebook)
        level = target.level
        signed = signed_codes(held.values) if coded else None
        if signed is not None and share <= DENSEST_BLOCKS:
            codes, scale, group = signed
            structure, index = structure_of(held, group)
            if structure.refuse(True, level) is None:
                return StructuredLinear.from_values(structure, codes, index, scale, bias, level.name)
        structure, index = structure_of(held)
        limit = DENSEST_FLOATS if coded else DENSEST_BLOCKS
        if share <= limit and structure.refuse(False, level) is None:
            values = held.values.dense().detach()
            return StructuredLinear.from_values(structure, values, index, None, bias, level.name)
        if coded:
            return rounded_linear(held.dense().detach(), bias, target)
        if columns <= MOST_COLUMNS and share <= DENSEST:
            return SparseLinear.from_weight(held.dense(), bias, "none", level.name)
        return DenseLinear.from_weight(held.dense(), bias, "none", level.name)

    def embedding(self, store: Store, target: Target) -> GatheredEmbedding:
        held = _banked(store)
        return masked_embedding(held.dense().detach(), kept_places(held), target)
