"""A linear over floating weights against float64, at every CPU level this machine runs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import RUNNABLE, WIDTHS, error
from torch import Tensor

from tersor.backends.numba import denseops
from tersor.backends.numba.denselinear import DenseLinear
from tersor.backends.numba.densepacking import narrowed
from tersor.backends.numba.reference import activate
from tersor.compiler.errors import RequestError
from tersor.compiler.stores import Dense

STORAGES = [torch.float32, torch.float16, torch.bfloat16]


def bound(x: Tensor, weight: Tensor) -> Tensor:
    """A sum of k products in order is off by at most k 2^-24 of the sum of their sizes, and a little for the bias."""
    sizes = x.double().abs() @ weight.double().abs().T
    return (weight.shape[1] + 8) * 2.0**-24 * (sizes + 10)


def weights(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Values exact in `dtype` and, for bfloat16, too far apart for float16."""
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    if dtype is torch.bfloat16:
        values[0, 0], values[-1, -1] = 3.0e20, 1.0e-20
    return values.to(dtype).float()


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize("dtype", STORAGES)
def test_agrees_with_float64(level: str, dtype: torch.dtype) -> None:
    """More than one block of columns, a partial panel, every size of tile."""
    weight, bias = weights(70, 1100, dtype), torch.randn(70)
    module = DenseLinear.from_weight(weight, bias, level=level)
    assert module.level == level
    assert torch.equal(module.dense(), weight)
    for count in (1, 8, 15):
        x = torch.randn(count, 1100)
        assert bool(((module(x) - (x.double() @ weight.double().T + bias)).abs() <= bound(x, weight)).all())


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 150),
    columns=st.integers(1, 700),
    count=st.sampled_from([0, 1, 2, 3, 7, 8, 33, 130]),
    dtype=st.sampled_from(STORAGES[:2]),
    level=st.sampled_from(WIDTHS),
    seed=st.integers(0, 1000),
)
def test_any_shape(rows: int, columns: int, count: int, dtype: torch.dtype, level: str, seed: int) -> None:
    weight, bias = weights(rows, columns, dtype, seed), torch.randn(rows)
    x = torch.randn(count, columns)
    y = DenseLinear.from_weight(weight, bias, level=level)(x)
    assert y.shape == (count, rows)
    assert bool(((y - (x.double() @ weight.double().T + bias)).abs() <= bound(x, weight)).all())


@given(exponent=st.integers(-60, 60), seed=st.integers(0, 100))
def test_sixteen_bits_only_where_they_are_exact(exponent: int, seed: int) -> None:
    exact = Dense.of(weights(3, 5, torch.float32, seed) * 2.0**exponent, "float16").values
    held = narrowed(exact)
    assert held.storage == "float16"
    assert torch.equal(torch.ldexp(held.stored.float(), torch.tensor(held.exponent)), exact)
    assert narrowed(exact * (1 + 2.0**-20)).storage == "float32"


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    module = DenseLinear.from_weight(torch.randn(100, 1100))
    x = torch.randn(23, 1100)
    assert torch.equal(module(x), torch.cat([module(row[None]) for row in x]))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads: int) -> None:
    module = DenseLinear.from_weight(weights(700, 300, torch.float32))
    x = torch.randn(300, 300, generator=torch.Generator().manual_seed(3))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        y = module(x)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(y, torch.cat([module(part) for part in x.split(7)]))


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("level", WIDTHS)
def test_activation(level: str, activation: str) -> None:
    weight = weights(67, 600, torch.float32)
    x = torch.randn(9, 600) / 10
    wanted = activate(x.double() @ weight.double().T, activation)
    module = DenseLinear.from_weight(weight, level=level).with_activation(activation)
    assert module is not None
    assert error(module(x), wanted.numpy()) < 1e-5


def test_ranks_strides_and_types() -> None:
    module = DenseLinear.from_weight(torch.randn(20, 96))
    for shape in ((96,), (2, 3, 96), (0, 96)):
        assert module(torch.randn(shape)).shape == (*shape[:-1], 20)
    x = torch.randn(96, 5).T
    assert torch.equal(module(x), module(x.contiguous()))
    assert module(x.to(torch.bfloat16)).dtype is torch.bfloat16


def test_gradient_of_the_input() -> None:
    weight = torch.randn(20, 96)
    module = DenseLinear.from_weight(weight, activation="gelu")
    x = torch.randn(4, 96, requires_grad=True)
    (got,) = torch.autograd.grad(module(x).sum(), x)
    (wanted,) = torch.autograd.grad(activate(x @ weight.T, "gelu").sum(), x)
    assert error(got, wanted.double().numpy()) < 1e-5


def test_operator_contract() -> None:
    module = DenseLinear.from_weight(torch.randn(20, 96))
    x = torch.randn(3, 96, requires_grad=True)
    torch.library.opcheck(denseops.linear, (x, module.weight, module.bias, *module._constants))


def test_half_the_bytes_for_sixteen_bits() -> None:
    module = DenseLinear.from_weight(weights(128, 256, torch.float16))
    assert sum(t.numel() * t.element_size() for t in module.state_dict().values()) == 128 * 256 * 2 + 128 * 4
    assert not list(module.parameters())


def test_refusals() -> None:
    with pytest.raises(RequestError, match="rows and columns"):
        DenseLinear.from_weight(torch.ones(0, 4))
    with pytest.raises(RequestError, match="bias has shape"):
        DenseLinear.from_weight(torch.ones(2, 4), torch.ones(3))
    with pytest.raises(RequestError, match="4 inputs"):
        DenseLinear.from_weight(torch.ones(2, 4))(torch.ones(3, 5))
