"""A linear over kept weights against float64, at every CPU level this machine runs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import RUNNABLE, WIDTHS, error
from torch import Tensor

from tersor.backends.numba import sparseops
from tersor.backends.numba.features import level_named
from tersor.backends.numba.reference import activate
from tersor.backends.numba.sparselinear import SparseLinear
from tersor.backends.numba.sparseops import pack_sparse, unpack_sparse
from tersor.compiler.errors import RequestError


def weights(rows: int, columns: int, density: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator)
    return values * (torch.rand(rows, columns, generator=generator) < density)


def close(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Each sum of k products is off by at most k 2^-24 of the sum of their sizes, and a little for the bias."""
    sizes = x.double().abs() @ weight.double().abs().T
    wanted = x.double() @ weight.double().T + bias
    return bool(((y - wanted).abs() <= (weight.shape[1] + 8) * 2.0**-24 * (sizes + 10)).all())


@pytest.mark.parametrize("level", RUNNABLE)
def test_agrees_with_float64(level: str) -> None:
    weight, bias = weights(70, 200, 0.2), torch.randn(70)
    weight[3] = 0
    module = SparseLinear.from_weight(weight, bias, level=level)
    assert module.level == level
    assert torch.equal(module.dense(), weight)
    for count in (1, 2, 3, 16, 37):
        x = torch.randn(count, 200)
        assert close(module(x), x, weight, bias)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 150),
    columns=st.integers(1, 300),
    count=st.sampled_from([0, 1, 2, 3, 7, 16, 33]),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    level=st.sampled_from(WIDTHS),
    seed=st.integers(0, 1000),
)
def test_any_shape(rows: int, columns: int, count: int, density: float, level: str, seed: int) -> None:
    weight, bias = weights(rows, columns, density, seed), torch.randn(rows)
    x = torch.randn(count, columns)
    y = SparseLinear.from_weight(weight, bias, level=level)(x)
    assert y.shape == (count, rows)
    assert close(y, x, weight, bias)


@given(rows=st.integers(1, 90), columns=st.integers(1, 100), level=st.sampled_from(WIDTHS), seed=st.integers(0, 99))
def test_packing_is_reversible(rows: int, columns: int, level: str, seed: int) -> None:
    weight = weights(rows, columns, 0.3, seed)
    packed = pack_sparse(weight, level_named(level))
    assert bool((packed[2] % level_named(level).lanes == 0).all())
    assert torch.equal(unpack_sparse(*packed, rows, columns), weight)


def test_columns_above_the_signed_range_of_a_place() -> None:
    weight = torch.zeros(2, 1 << 16)
    weight[0, -1], weight[1, 40000] = 2, 3
    x = torch.randn(1, 1 << 16)
    y = SparseLinear.from_weight(weight)(x)
    assert torch.equal(y, torch.stack([2 * x[:, -1], 3 * x[:, 40000]], dim=1))


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("count", [1, 9, 33])
def test_activation(activation: str, count: int) -> None:
    weight = weights(130, 100, 0.3)
    x = torch.randn(count, 100)
    module = SparseLinear.from_weight(weight).with_activation(activation)  # type: ignore[arg-type]
    assert module is not None
    assert error(module(x), activate(x.double() @ weight.double().T, activation).numpy()) < 1e-5  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads: int) -> None:
    module = SparseLinear.from_weight(weights(700, 300, 0.2))
    x = torch.randn(300, 300, generator=torch.Generator().manual_seed(3))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        y = module(x)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(y, torch.cat([module(part) for part in x.split(25)]))


def test_ranks_strides_types_and_gradient() -> None:
    weight = weights(20, 96, 0.3)
    module = SparseLinear.from_weight(weight, activation="gelu")
    for shape in ((96,), (2, 3, 96), (0, 96)):
        assert module(torch.randn(shape)).shape == (*shape[:-1], 20)
    x = torch.randn(96, 5).T
    assert torch.equal(module(x), module(x.contiguous()))
    assert module(x.to(torch.bfloat16)).dtype is torch.bfloat16
    x = torch.randn(4, 96, requires_grad=True)
    (got,) = torch.autograd.grad(module(x).sum(), x)
    (wanted,) = torch.autograd.grad(activate(x @ weight.T, "gelu").sum(), x)
    assert error(got, wanted.double().numpy()) < 1e-5


def test_operator_contract() -> None:
    module = SparseLinear.from_weight(weights(20, 96, 0.3))
    arrays = (module.values, module.places, module.starts, module.bias)
    torch.library.opcheck(sparseops.linear, (torch.randn(3, 96, requires_grad=True), *arrays, *module._constants))


def test_refusals() -> None:
    with pytest.raises(RequestError, match="1 to 65536 columns"):
        SparseLinear.from_weight(torch.ones(0, 4))
    with pytest.raises(RequestError, match="bias has shape"):
        SparseLinear.from_weight(torch.ones(2, 4), torch.ones(3))
    with pytest.raises(RequestError, match="4 inputs"):
        SparseLinear.from_weight(torch.ones(2, 4))(torch.ones(3, 5))
