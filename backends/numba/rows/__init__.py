"""The forms in which the rows of a table are kept, by name: one file per family."""

from __future__ import annotations

from collections.abc import Mapping

from tersor.backends.numba.rows.affine import AffineRows
from tersor.backends.numba.rows.codes import CodeRows
from tersor.backends.numba.rows.floats import FloatRows
from tersor.backends.numba.rows.form import Bag, RowForm, Sample, Table
from tersor.backends.numba.rows.product import ProductRows, product_form
from tersor.backends.numba.rows.sparse import SparseRows

ROWS: Mapping[str, RowForm] = {
    "float32": FloatRows("float32"),
    "float16": FloatRows("float16"),
    "bfloat16": FloatRows("bfloat16"),
    "codes8": CodeRows(8),
    "codes4": CodeRows(4),
    "affine8": AffineRows(8),
    "affine4": AffineRows(4),
    "sparse": SparseRows(),
    **{product_form(width, block): ProductRows(width, block) for width in (4, 8) for block in (2, 4, 8)},
}

__all__ = ["ROWS", "Bag", "RowForm", "Sample", "Table"]
