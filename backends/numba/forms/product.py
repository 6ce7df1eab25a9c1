"""Codes of sub-vectors into books."""

from __future__ import annotations

from torch import Tensor, nn

from tersor.backends.numba.forms.form import Form, Target
from tersor.backends.numba.forms.rounded import rounded_linear
from tersor.backends.numba.gather import GatheredEmbedding
from tersor.backends.numba.rows.product import product_table
from tersor.compiler.errors import CompilerBug
from tersor.compiler.stores import Product, Store


class ProductForm(Form):
    """w = the centroids that the codes name.

    A linear is expanded to 8 bits (see `rounded`): looking up what every centroid gives for a token takes longer. The
    rows of an embedding are exact and stay codes.
    """

    def linear(self, store: Store, bias: Tensor | None, target: Target) -> nn.Module:
        return rounded_linear(store.dense().detach(), bias, target)

    def embedding(self, store: Store, target: Target) -> GatheredEmbedding:
        if not isinstance(store, Product):
            raise CompilerBug(f"a store of kind {store.kind} was taken for a product")
        form, table = product_table(store.codes.values, store.books().detach(), store.shape[1])
        return GatheredEmbedding.of(form, table, target.level.name)
