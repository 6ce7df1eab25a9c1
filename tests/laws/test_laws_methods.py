"""Every method at every example point keeps every law, on ordinary and on awkward tensors."""

from __future__ import annotations

from typing import Any

import pytest
from tests.laws.cases import SHAPES, STEPS, TENSORS
from tests.laws.laws import STORE_LAWS, law_idempotent, law_monotone, law_refuse, law_shape

from tersor.compiler.candidate import Step, pack
from tersor.compiler.method import Method, Refusal
from tersor.passes import METHODS

IDS = [method.id for method in METHODS]

# Through the eigenvalues of a Gram matrix: components below the square root of the precision are noise of that size.
TOLERANCE = {"decomp.svd": 1e-5}

# A scale in 16 bits may be one step, 2^-10 of itself, off, whatever the number of levels: so may every value.
HALF = 2.0**-20


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("step", STEPS, ids=lambda s: s.text)
def test_store_laws(step: Step, name: str) -> None:
    tensor = TENSORS[name]
    store = pack(tensor, (step,))
    if isinstance(store, Refusal):
        assert step.method.refuse(tuple(tensor.shape), step.point) == Refusal(
            store.reason.removeprefix(f"{step.text}: ")
        )
        return
    law_shape(store, tensor)
    for law in STORE_LAWS:
        law(store)
    law_idempotent(store, step, TOLERANCE.get(step.method.id, 0.0))


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@pytest.mark.parametrize("name", ["odd", "outlier", "tiny", "huge", "heavy tails"])
def test_more_bytes_never_do_more_damage(method: Method[Any], name: str) -> None:
    tensor = TENSORS[name]
    stores = [pack(tensor, (Step(method, point),)) for point in method.examples()]
    law_monotone([s for s in stores if not isinstance(s, Refusal)], tensor, HALF)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_refusals(method: Method[Any]) -> None:
    for point in method.examples():
        law_refuse(method, point, SHAPES)


def test_every_method_packs_something() -> None:
    packed = {s.method.id for s in STEPS for t in TENSORS.values() if not isinstance(pack(t, (s,)), Refusal)}
    assert packed == set(IDS)


def test_ids_are_unique_and_sources_given() -> None:
    assert len(set(IDS)) == len(IDS)
    assert all(method.source and method.title and method.kinds for method in METHODS)
