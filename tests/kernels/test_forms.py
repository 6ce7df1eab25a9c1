"""The law of the forms: a kernel that claims a store agrees with the store."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import WIDTHS, rounded_activations
from kernel_stores import STORES, affine, codebook, sparse, values

from tersor.backends.numba.backend import NumbaBackend
from tersor.backends.numba.denselinear import DenseLinear
from tersor.backends.numba.features import detect
from tersor.backends.numba.forms import FORMS, Target
from tersor.backends.numba.forms.rounded import WORST, rounded
from tersor.backends.numba.gather import GatheredEmbedding
from tersor.backends.numba.linear import QuantizedLinear
from tersor.compiler.compressed import CompressedEmbedding, CompressedLinear, StoredWeight
from tersor.compiler.stores import Codebook, Codes, Dense, Store

EXACT = {"blocks", "banks", "dense", "half", "bf16", "bitmask", "delta", "sparse half", "chain", "chain sparse"}
"""Stores that are computed in floating point: no rounding but that of float32 sums."""


def target(level: str | None = None) -> Target:
    return Target(detect(level), 64)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(STORES)),
    rows=st.integers(2, 90),
    columns=st.integers(2, 200),
    count=st.sampled_from([1, 3, 8, 17]),
    level=st.sampled_from(WIDTHS),
    seed=st.integers(0, 1000),
)
def test_a_linear_agrees_with_its_store(name: str, rows: int, columns: int, count: int, level: str, seed: int) -> None:
    store = STORES[name](values(rows, columns, seed))
    assert FORMS[store.kind].refuse(store) is None
    bias = torch.randn(rows)
    x = torch.randn(count, columns)
    module = FORMS[store.kind].linear(store, bias, target(level))
    wanted = store.apply(x) + bias
    assert float((module(x) - wanted).norm() / (x.norm() * store.dense().norm() / columns**0.5 + wanted.norm())) < (
        1e-5 if name in EXACT else 0.03
    )


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(STORES)),
    rows=st.integers(2, 60),
    columns=st.integers(2, 100),
    level=st.sampled_from(WIDTHS),
    seed=st.integers(0, 1000),
)
def test_an_embedding_agrees_with_its_store(name: str, rows: int, columns: int, level: str, seed: int) -> None:
    """To the last bit, but for the product of a chain."""
    store = STORES[name](values(rows, columns, seed))
    index = torch.randint(0, rows, (3, 4))
    got, wanted = FORMS[store.kind].embedding(store, target(level))(index), store.rows(index)
    if store.kind == "chain":
        assert float((got - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    else:
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero", [True, False])
def test_sparse_codes_are_computed_as_they_are(bits: int, zero: bool) -> None:
    """What is left out gets the zero point as its code: the matrix of the kernel is that of the store."""
    store = sparse(values(40, 96, 0), 0.3, lambda v: affine(v, bits, zero))
    module = FORMS[store.kind].linear(store, None, target())
    assert isinstance(module, QuantizedLinear)
    assert module.layout.width == bits
    torch.testing.assert_close(module.dense(), store.dense(), rtol=1e-6, atol=1e-7)
    x = torch.randn(5, 96)
    wanted = rounded_activations(x, 64) @ store.dense().double().numpy().T
    assert float((module(x).double() - torch.from_numpy(wanted)).abs().max()) < 1e-5 * float(abs(wanted).max())


@pytest.mark.parametrize("group", [0, 64])
def test_rounding_keeps_its_bound(group: int) -> None:
    weight = values(20, 200, 1) * torch.logspace(-3, 3, 20)[:, None]
    weight[3] = 0
    codes, scale, error = rounded(weight, group)
    repeated = scale.repeat_interleave(group or 200, dim=1)[:, :200]
    difference = (codes.float() - 128) * repeated - weight
    assert bool((difference.abs() <= repeated / 2 * (1 + 1e-5)).all())
    assert error == pytest.approx(float(difference.norm() / weight.norm()), rel=1e-4)


def test_levels_too_far_apart_for_8_bits_stay_exact() -> None:
    """One weight thirty times the others: in a row it spoils them all, in groups only its own, in every group all."""
    levels = Dense.of(torch.tensor([0.001, 0.002, 0.0035, 0.1]), "float16")
    codes = torch.randint(0, 3, (8, 51200), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    codes[:, 0] = 3
    one = Codebook(Codes(codes.clone(), 2), levels)
    assert rounded(one.dense(), 0)[2] > WORST
    kernel = FORMS["codebook"].linear(one, None, target())
    assert isinstance(kernel, QuantizedLinear)
    assert kernel.layout.weight_group == 64
    codes[:, ::64] = 3
    many = Codebook(Codes(codes, 2), levels)
    assert rounded(many.dense(), 64)[2] > WORST
    exact = FORMS["codebook"].linear(many, None, target())
    assert isinstance(exact, DenseLinear)
    assert exact.weight.dtype is torch.float16
    assert torch.equal(exact.dense(), many.dense())


def test_an_embedding_takes_the_least_memory() -> None:
    """16 levels take half a byte, a sparse table 6 bytes a kept value, unless floats take less."""
    table = values(64, 100, 0)

    def held(store: Store) -> tuple[str, int]:
        module = FORMS[store.kind].embedding(store, target())
        assert isinstance(module, GatheredEmbedding)
        return module.form, module.table.arrays[0].nbytes

    assert held(codebook(table, 4)) == ("codes4", 64 * 50)
    assert held(codebook(table, 8)) == ("codes8", 64 * 100)
    assert held(sparse(table, 0.1, Dense)) == ("sparse", 4 * 640)
    assert held(sparse(table, 0.9, Dense))[0] == "float32"
    assert held(sparse(table, 0.9, lambda v: Dense.of(v, "float16")))[0] == "float16"


def test_the_backend_claims_every_form() -> None:
    backend = NumbaBackend()
    for make in STORES.values():
        weight = StoredWeight(make(values(20, 64, 0)))
        assert backend.claim(CompressedLinear(weight, None)) is None
        assert backend.claim(CompressedEmbedding(weight, None)) is None
