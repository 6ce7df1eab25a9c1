"""Codes into a table of levels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tersor.backends.numba.forms.form import Form, Target
from tersor.backends.numba.forms.rounded import WORST, rounded_linear
from tersor.backends.numba.gather import GatheredEmbedding
from tersor.backends.numba.layout import MAX_COLUMNS
from tersor.backends.numba.lookuplinear import LookupLinear, round_levels
from tersor.backends.numba.lookupops import CENTER
from tersor.backends.numba.rows import Table
from tersor.backends.numba.rows.codes import pack_nibbles
from tersor.compiler.errors import CompilerBug
from tersor.compiler.stores import Codebook, Store


def _codebook(store: Store) -> Codebook:
    if not isinstance(store, Codebook):
        raise CompilerBug(f"a store of kind {store.kind} was taken for a codebook")
    return store


def _rounding(held: Codebook) -> float:
    """The root mean square by which rounding its levels moves the weights, relative to theirs."""
    levels = held.table.dense().detach()
    rounded, scale = round_levels(levels)
    uses = torch.bincount(held.codes.values.reshape(-1), minlength=levels.numel())
    change = (rounded.float() - CENTER) * scale - levels
    error = (uses * change.square()).sum().sqrt() / (uses * levels.square()).sum().sqrt()
    return float(error.nan_to_num(0.0))


class CodebookForm(Form):
    """w = levels[code].

    A linear of at most 16 levels keeps its codes and looks them up, the levels rounded to 1/127 of the largest. More
    levels, or levels that this would change by more than WORST, are expanded to 8 bits, rounded to 1/127 of the
    largest in their row or group (see `rounded`). The rows of an embedding are exact and stay codes, two in a byte
    where 16 levels do.
    """

    def linear(self, store: Store, bias: Tensor | None, target: Target) -> nn.Module:
        held = _codebook(store)
        levels = held.table.dense().detach()
        small = levels.numel() <= 16 and held.shape[1] <= MAX_COLUMNS and target.level.name != "generic"
        if small and _rounding(held) <= WORST:
            codes = held.codes.values.detach()
            return LookupLinear.from_codes(codes, *round_levels(levels), bias, target.group(), target.level.name)
        return rounded_linear(store.dense().detach(), bias, target)

    def embedding(self, store: Store, target: Target) -> GatheredEmbedding:
        held = _codebook(store)
        codes, levels = held.codes.values.detach(), held.table.dense().detach().clone()
        rows, columns = held.codes.shape
        small = levels.numel() <= 16
        packed = pack_nibbles(codes) if small else codes.clone()
        # Any byte may be read as a code.
        padded = nn.functional.pad(levels, (0, (16 if small else 256) - levels.numel()))
        form = "codes4" if small else "codes8"
        return GatheredEmbedding.of(form, Table(rows, columns, (packed, padded)), target.level.name)
