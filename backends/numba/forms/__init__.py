"""Which kernels compute which stored form: one file per form, and the table."""

from __future__ import annotations

from collections.abc import Mapping

from tersor.backends.numba.forms.affine import AffineForm
from tersor.backends.numba.forms.dense import DenseForm
from tersor.backends.numba.forms.form import Form, Target

FORMS: Mapping[str, Form] = {"affine": AffineForm(), "dense": DenseForm()}
"""By the kind of the store."""

__all__ = ["FORMS", "Form", "Target"]
