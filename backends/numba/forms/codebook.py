"""Codes into a table of levels."""

from __future__ import annotations

from torch import Tensor, nn

from tersor.backends.numba.forms.form import Form, Target
from tersor.backends.numba.forms.rounded import rounded_linear
from tersor.backends.numba.gather import GatheredEmbedding, trusted_rows
from tersor.backends.numba.gatherkernels import Rows
from tersor.compiler.errors import CompilerBug
from tersor.compiler.stores import Codebook, Store


class CodebookForm(Form):
    """w = levels[code].

    A linear is expanded to 8 bits when it is packed: the levels are rounded to 1/127 of the largest in their row or
    group (see `rounded`). The rows of an embedding are exact and stay codes, two in a byte where 16 levels do.
    """

    def linear(self, store: Store, bias: Tensor | None, target: Target) -> nn.Module:
        return rounded_linear(store.dense().detach(), bias, target)

    def embedding(self, store: Store, target: Target) -> GatheredEmbedding:
        if not isinstance(store, Codebook):
            raise CompilerBug(f"a store of kind {store.kind} was taken for a codebook")
        codes, levels = store.codes.values.detach(), store.table.dense().detach().clone()
        rows, columns = store.codes.shape
        small = levels.numel() <= 16
        if small:
            even = nn.functional.pad(codes, (0, columns % 2)).view(rows, -1, 2)
            codes = even[..., 0] | (even[..., 1] << 4)
        form: Rows = "codes4" if small else "codes8"
        level = trusted_rows(target.level.name, form)
        # Any byte may be read as a code.
        padded = nn.functional.pad(levels, (0, (16 if small else 256) - levels.numel()))
        return GatheredEmbedding((rows, columns), form, level.name if level else None, codes.clone(), padded)
