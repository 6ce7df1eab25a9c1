"""Every composition of two methods keeps every law, at every pair of their example points."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from tests.laws.cases import TENSORS
from tests.laws.laws import STORE_LAWS, law_idempotent, law_shape
from tests.laws.test_laws_methods import TOLERANCE

from tersor.compiler.candidate import Step, pack
from tersor.compiler.method import Method, Refusal
from tersor.compiler.stores import Store
from tersor.passes import METHODS

PAIRS = [(first, second) for first in METHODS for second in METHODS]
DISTINCT = [method for method in METHODS if method.scope == "site"]
"""Scoped methods pack a tensor alone as the unscoped one of their family does."""


def steps_of(method: Method[Any], ends: bool) -> tuple[Step, ...]:
    points = method.examples()
    return tuple(Step(method, p) for p in ((points[0], points[-1]) if ends else points))


@functools.cache
def first_stage(step: Step, name: str) -> Store | Refusal:
    return pack(TENSORS[name], (step,))


def compositions(first: Method[Any], second: Method[Any], name: str, ends: bool) -> Iterator[tuple[Step, Step, Store]]:
    """Both steps and the store they make; where they do not fit together, the reason is checked."""
    for a in steps_of(first, ends):
        for b in steps_of(second, ends):
            store = pack(TENSORS[name], (a, b))
            if not isinstance(store, Refusal):
                yield a, b, store
                continue
            assert len(store.reason) > 5
            alone = first_stage(a, name)
            if not isinstance(alone, Refusal):
                shapes = [leaf.shape for leaf in alone.open_leaves()]
                assert not shapes or any(second.refuse(s, b.point) is not None for s in shapes)


def packed_leaves(store: Store, first: Store) -> Iterator[Store]:
    """The stores that stand where the open leaves of the first stage stood."""
    if not first.parts():
        yield store
    for name, part in first.parts().items():
        if name in first.open_parts():
            yield from packed_leaves(store.parts()[name], part)


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda m: m.id)
def test_all_laws_at_every_pair_of_points(first: Method[Any], second: Method[Any]) -> None:
    for a, b, store in compositions(first, second, "odd", ends=False):
        law_shape(store, TENSORS["odd"])
        for law in STORE_LAWS:
            law(store)
        alone = first_stage(a, "odd")
        assert isinstance(alone, Store)
        for leaf in packed_leaves(store, alone):
            law_idempotent(leaf, b, TOLERANCE.get(second.id, 0.0))


@pytest.mark.parametrize("first", DISTINCT, ids=lambda m: m.id)
@pytest.mark.parametrize("name", [n for n in TENSORS if n != "odd"])
def test_awkward_tensors(first: Method[Any], name: str) -> None:
    for second in DISTINCT:
        for _, _, store in compositions(first, second, name, ends=True):
            law_shape(store, TENSORS[name])
            for law in STORE_LAWS:
                law(store)


def test_a_later_stage_never_grows_what_it_packs() -> None:
    """16-bit values after pruning, and small codes after 16 bits, take less."""
    by_id = {m.id: m for m in METHODS}
    chain = [by_id["prune.magnitude"], by_id["quant.half"]]
    sizes = [TENSORS["odd"].numel() * 4]
    for depth in range(1, 3):
        store = pack(TENSORS["odd"], [steps_of(m, True)[0] for m in chain[:depth]])
        assert isinstance(store, Store)
        sizes.append(store.nbytes())
    assert all(later < earlier for earlier, later in pairwise(sizes))
