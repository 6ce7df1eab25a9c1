"""Trees of stores: what is open, what replacing a leaf does, what a damaged description is answered with."""

from __future__ import annotations

import copy
import json
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.compiler.candidate import Step, pack
from tersor.compiler.errors import ArtifactError
from tersor.compiler.stores import Chain, Codebook, Dense, Store, from_state
from tersor.compiler.stores.sparse import MOST_SLOTS
from tersor.passes import METHODS
from tersor.passes.decompose.svd import Svd
from tersor.passes.prune.magnitude import Magnitude
from tersor.passes.quantize.half import Half
from tersor.passes.quantize.kmeans import KMeans
from tersor.passes.quantize.uniform import Uniform

BY_ID = {method.id: method for method in METHODS}
WEIGHT = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))


def packed(*steps: tuple[str, Any]) -> Store:
    store = pack(WEIGHT, [Step(BY_ID[name], point) for name, point in steps])
    assert isinstance(store, Store)
    return store


SVD = ("decomp.svd", Svd(rank=6))
PRUNE = ("prune.magnitude", Magnitude(sparsity=0.6))
UNIFORM = ("quant.uniform", Uniform(bits=4, group="row"))
STORES = {
    "dense": packed(("quant.half", Half())),
    "affine": packed(UNIFORM),
    "codebook": packed(("quant.kmeans.static", KMeans(bits=3))),
    "chain of sparse codebooks": packed(SVD, PRUNE, ("quant.kmeans.static", KMeans(bits=2))),
    "delta": packed(("prune.magnitude", Magnitude(sparsity=0.9, store="delta")), ("quant.half", Half())),
}


def test_what_is_open() -> None:
    assert [leaf.shape for leaf in packed(SVD).open_leaves()] == [(24, 6), (6, 40)]
    assert [leaf.shape for leaf in packed(PRUNE).open_leaves()] == [(1, 24 * 40 - 576)]
    assert packed(UNIFORM).open_leaves() == []
    assert [leaf.shape for leaf in packed(SVD, UNIFORM).open_leaves()] == []


def test_replacing_open_leaves_is_composition() -> None:
    """Pruning and then coding the kept values equals coding them by hand and scattering."""
    store = packed(PRUNE, ("quant.kmeans.static", KMeans(bits=3)))
    pruned = packed(PRUNE).dense()
    kept = pruned != 0
    by_hand = BY_ID["quant.kmeans.static"].pack(pruned[kept].reshape(1, -1), KMeans(bits=3))
    expected = torch.zeros(24, 40)
    expected[kept] = by_hand.dense().reshape(-1)
    assert torch.equal(store.dense(), expected)
    chain = packed(SVD, UNIFORM)
    assert isinstance(chain, Chain)
    plain = packed(SVD)
    assert isinstance(plain, Chain)
    for side in ("left", "right"):
        own = BY_ID["quant.uniform"].pack(getattr(plain, side).dense(), UNIFORM[1])
        assert torch.equal(getattr(chain, side).dense(), own.dense())


def test_a_codebook_sums_the_gradients_of_its_groups() -> None:
    store = STORES["codebook"]
    assert isinstance(store, Codebook)
    table = store.table.values.clone().requires_grad_(True)
    weights = torch.randn(24, 40)
    (store.bound({"codes": store.codes.values, "table": table}).dense() * weights).sum().backward()
    expected = torch.zeros(8, dtype=torch.float64)
    for code, value in zip(store.codes.values.reshape(-1).tolist(), weights.reshape(-1).tolist(), strict=True):
        expected[code] += value
    torch.testing.assert_close(table.grad, expected.float(), rtol=0, atol=1e-4)


def shaken(spec: Any, data: st.DataObject) -> Any:
    """The description with one value, somewhere in it, replaced or removed."""
    spec = copy.deepcopy(spec)
    place = spec
    while True:
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        if data.draw(st.integers(0, 4)) == 0:
            del place[key]
        else:
            junk = st.one_of(
                st.integers(-3, 2**40), st.text(max_size=4), st.none(), st.floats(), st.just({}), st.just([])
            )
            place[key] = data.draw(junk)
        return spec


@pytest.mark.parametrize("name", STORES)
@given(data=st.data())
def test_a_damaged_description_is_refused_or_harmless(name: str, data: st.DataObject) -> None:
    store = STORES[name]
    state = {f"w.{key}" if key else "w": array for key, array in store.state().items()}
    spec = shaken(json.loads(json.dumps(store.spec())), data)
    try:
        again = from_state(spec, state.get, "w")
    except ArtifactError as problem:
        assert "damaged" in str(problem)
    else:
        assert prod(again.shape) <= MOST_SLOTS
        if prod(again.shape) < 10**6:
            assert tuple(again.dense().shape) == tuple(again.shape)


def test_a_few_positions_do_not_ask_for_a_huge_tensor() -> None:
    store = STORES["delta"]
    state = {f"w.{key}": array for key, array in store.state().items()}
    with pytest.raises(ArtifactError, match="more than 32-bit positions reach"):
        from_state(store.spec() | {"shape": [2**31, 40]}, state.get, "w")


def test_a_bottomless_description_is_refused() -> None:
    spec: dict[str, Any] = {"kind": "dense", "shape": [2, 2], "dtype": "float32"}
    for _ in range(200):
        spec = {"kind": "chain", "shape": [2, 2], "parts": {"left": spec, "right": spec}}
    with pytest.raises(ArtifactError):
        from_state(spec, lambda _: torch.zeros(2, 2), "w")


def test_dense_is_the_identity() -> None:
    assert Dense(WEIGHT).dense() is WEIGHT
    assert Dense(WEIGHT).nbytes() == WEIGHT.numel() * 4
