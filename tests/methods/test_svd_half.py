"""decomp.svd against the singular values of numpy, quant.half against what 16-bit formats can hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tersor.passes.decompose.svd import Svd, TruncatedSvd, rank_of
from tersor.passes.quantize.half import Half, HalfPrecision

SVD, HALF = TruncatedSvd(), HalfPrecision()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (25, 25), (3, 100), (100, 3)])
def test_the_error_is_the_tail_of_the_singular_values(shape: tuple[int, int]) -> None:
    """Eckart-Young, to the rounding of the factors: 2^-23 of the whole norm per entry."""
    weight = drawn(*shape) * torch.logspace(0, -3, shape[1])
    sigma = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    for rank in range(1, min(shape) + 1):
        store = SVD.pack(weight, Svd(rank=rank))
        assert store.rank == rank
        error = float((store.dense().double() - weight.double()).norm())
        tail = math.sqrt(float((sigma[rank:] ** 2).sum()))
        assert abs(error - tail) <= 4e-6 * float(sigma[0]), (rank, error, tail)
        assert store.nbytes() == 4 * rank * sum(shape)


def test_full_rank_is_exact() -> None:
    weight = drawn(12, 17)
    torch.testing.assert_close(SVD.pack(weight, Svd(rank=12)).dense(), weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("true_rank", [1, 3])
def test_a_matrix_of_low_rank_needs_no_more(true_rank: int) -> None:
    weight = drawn(20, true_rank) @ drawn(true_rank, 33, seed=1)
    found = SVD.pack(weight, Svd(rank=true_rank)).dense()
    torch.testing.assert_close(found, weight, rtol=0, atol=2e-6 * float(weight.abs().max()))
    beyond = SVD.pack(weight, Svd(rank=true_rank + 4)).dense()
    torch.testing.assert_close(beyond, weight, rtol=0, atol=2e-6 * float(weight.abs().max()))


def test_the_factors_are_balanced_and_orthogonal() -> None:
    store = SVD.pack(drawn(20, 33), Svd(rank=5))
    left, right = store.left.dense().double(), store.right.dense().double()
    torch.testing.assert_close(left.T @ left, right @ right.T, rtol=1e-5, atol=1e-5)
    off = left.T @ left - torch.diag((left.T @ left).diagonal())
    assert float(off.abs().max()) < 1e-5


def test_zeros_and_tiny_values() -> None:
    assert not SVD.pack(torch.zeros(10, 20), Svd(rank=2)).dense().any()
    weight = 1e-12 * drawn(10, 20)
    torch.testing.assert_close(SVD.pack(weight, Svd(rank=10)).dense(), weight, rtol=1e-3, atol=1e-17)


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 50))
def test_refused_exactly_where_it_would_not_shrink(m: int, n: int, rank: int) -> None:
    refused = SVD.refuse((m, n), Svd(rank=rank)) is not None
    assert refused == (rank > min(m, n) or rank * (m + n) >= m * n)


def test_a_share_of_the_rank() -> None:
    assert rank_of(Svd(rank=0.25), (40, 100)) == 10
    assert rank_of(Svd(rank=0.001), (40, 100)) == 1
    assert rank_of(Svd(rank=1), (40, 100)) == 1
    assert rank_of(Svd(rank=1.0), (40, 100)) == 40
    for wrong in (0, -3, 0.0, 1.5, -0.5):
        with pytest.raises(ValidationError):
            Svd(rank=wrong)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e-5, 1.0, 100.0, 6e4, 1e8, 1e30])
def test_sixteen_bits_keep_eleven_of_each_weight(scale: float) -> None:
    """fp16 with an exponent per tensor: 2^-11 of every weight down to 2^-29 of the largest; bf16: 2^-8 of every weight;
    the size halves."""
    weight = drawn(30, 40) * scale
    for point, unit in ((Half(format="fp16"), 2.0**-11), (Half(format="bf16"), 2.0**-8)):
        store = HALF.pack(weight, point)
        assert store.nbytes() * 2 == weight.numel() * 4
        error = (store.dense().double() - weight.double()).abs()
        assert bool((error <= unit * weight.double().abs()).all())


def test_small_weights_beside_a_large_one() -> None:
    """Below 2^-29 of the largest the step of fp16 is 2^-39 of it."""
    weight = torch.tensor([[3.0, 3.0 * 2**-20, 3.0 * 2**-28, 3.1 * 2**-33, 3.0 * 2**-45]])
    found = HALF.pack(weight, Half()).dense()
    step = 2.0 ** (1 - 14 - 24)
    bound = torch.maximum(2.0**-11 * weight.double(), torch.tensor(step / 2))
    assert bool(((found - weight).double().abs() <= bound).all())
    assert found[0, -1] == 0


def test_the_exponent_is_absent_only_where_it_does_nothing() -> None:
    weight = drawn(4, 4)
    store = HALF.pack(weight, Half())
    largest = float(store.state()[""].abs().max())
    assert 2**14 <= largest < 2**15 + 1
    assert bool(store.state()[""].isfinite().all())
    assert HALF.pack(torch.zeros(3, 3), Half()).meta() == {"dtype": "float16"}


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_any_single_value(value: float) -> None:
    weight = torch.tensor([[value]])
    found = float(HALF.pack(weight, Half()).dense())
    assert abs(found - value) <= 2.0**-11 * value
