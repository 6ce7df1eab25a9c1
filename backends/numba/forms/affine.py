"""Codes with a scale and a zero point per group: the integer kernels take them as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.backends.numba.forms.form import Form, Target
from tersor.backends.numba.gather import GatheredEmbedding
from tersor.backends.numba.layout import STEP
from tersor.backends.numba.linear import QuantizedLinear
from tersor.backends.numba.rows.affine import affine_table
from tersor.compiler.errors import CompilerBug
from tersor.compiler.stores import Affine, Store


def _affine(store: Store) -> Affine:
    if not isinstance(store, Affine):
        raise CompilerBug(f"a store of kind {store.kind} was taken for an affine one")
    return store


def operands(store: Affine) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """codes, scale, zero, bits and group (0: the whole row) as the kernels want them."""
    scale = store.scale.dense().detach()
    center = float(1 << (store.bits_per_code - 1))
    zero = torch.full_like(scale, center) if store.zero is None else store.zero.values
    group = store.group if store.group < store.shape[1] else 0
    return store.codes.values.detach(), scale, zero, store.bits_per_code, group


def fitting_group(wanted: int, group: int) -> int:
    """The wanted activation group, made to fit the weight's: one divides the other."""
    if not wanted or not group or wanted % group == 0 or group % wanted == 0:
        return wanted
    return group


class AffineForm(Form):
    """w = scale (code - zero)."""

    def refuse(self, store: Store) -> str | None:
        held = _affine(store)
        if held.group < held.shape[1] and held.group % STEP:
            return f"groups of {held.group} columns are not a multiple of {STEP}"
        return None

    def linear(self, store: Store, bias: Tensor | None, target: Target) -> QuantizedLinear:
        held = _affine(store)
        codes, scale, zero, bits, group = operands(held)
        activation_group = fitting_group(target.group(held.input_group), group)
        return QuantizedLinear.from_codes(
            codes, scale, zero, bits, bias, "none", activation_group, group, target.level.name
        )

    def embedding(self, store: Store, target: Target) -> GatheredEmbedding:
        return GatheredEmbedding.of(*affine_table(*operands(_affine(store))), target.level.name)
