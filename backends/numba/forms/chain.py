"""A product of factors: one linear after the other, each in the form of its own store."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tersor.backends.numba.denselinear import DenseLinear
from tersor.backends.numba.forms.form import Form, Target
from tersor.backends.numba.inturn import InTurn
from tersor.compiler.errors import CompilerBug
from tersor.compiler.stores import Chain, Store


def _chain(store: Store) -> Chain:
    if not isinstance(store, Chain):
        raise CompilerBug(f"a store of kind {store.kind} was taken for a chain")
    return store


class ChainForm(Form):
    """w = left right; `forms` is the table that the factors are looked up in."""

    def __init__(self, forms: Mapping[str, Form]) -> None:
        self.forms = forms

    def refuse(self, store: Store) -> str | None:
        for name, part in _chain(store).parts().items():
            form = self.forms.get(part.kind)
            reason = form.refuse(part) if form else f"no kernel for a store of kind {part.kind}"
            if reason:
                return f"{name} factor: {reason}"
        return None

    def linear(self, store: Store, bias: Tensor | None, target: Target) -> InTurn:
        """x (right, then left)."""
        left, right = _chain(store).left, _chain(store).right
        first = self.forms[right.kind].linear(right, None, target)
        return InTurn(first, self.forms[left.kind].linear(left, bias, target))

    def embedding(self, store: Store, target: Target) -> InTurn:
        """Rows of the left factor times the right one, which stays as exact as it is: its columns have no scales."""
        left, right = _chain(store).left, _chain(store).right
        rows = self.forms[left.kind].embedding(left, target)
        return InTurn(rows, DenseLinear.from_weight(right.dense().T, None, "none", target.level.name))
