"""Which kernels compute which stored form: one file per form, and the table."""

from __future__ import annotations

from collections.abc import Mapping

from tersor.backends.numba.forms.affine import AffineForm
from tersor.backends.numba.forms.banked import BankedForm
from tersor.backends.numba.forms.chain import ChainForm
from tersor.backends.numba.forms.codebook import CodebookForm
from tersor.backends.numba.forms.dense import DenseForm
from tersor.backends.numba.forms.form import Form, Target
from tersor.backends.numba.forms.plain import plain_kernel
from tersor.backends.numba.forms.product import ProductForm
from tersor.backends.numba.forms.sparse import SparseForm


def _table() -> Mapping[str, Form]:
    forms: dict[str, Form] = {
        "affine": AffineForm(),
        "dense": DenseForm(),
        "codebook": CodebookForm(),
        "product": ProductForm(),
        "bitmask": SparseForm(),
        "delta": SparseForm(),
        "banked": BankedForm(),
    }
    forms["chain"] = ChainForm(forms)
    return forms


FORMS: Mapping[str, Form] = _table()
"""By the kind of the store."""

__all__ = ["FORMS", "Form", "Target", "plain_kernel"]
