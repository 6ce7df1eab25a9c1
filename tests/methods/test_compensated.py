"""Compensated rounding against what it minimises: tr(D H D^T), D = W - W^, H the form of the error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tersor.compiler.method import Context
from tersor.compiler.stores import Affine
from tersor.passes.quantize.compensate import DAMPING, compensated, inverse_factor
from tersor.passes.quantize.uniform import Group, Uniform, UniformQuantisation, quantise

METHOD = UniformQuantisation()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(width: int, seed: int = 0, share: float = 0.9) -> Tensor:
    """The second moment of vectors whose coordinates mostly move together."""
    x = share * drawn(4 * width, 1, seed=seed) + (1 - share) * drawn(4 * width, width, seed=seed + 1)
    x = x * (0.2 + drawn(width, seed=seed + 2).abs())
    return x.T @ x / len(x)


def damped(form: Tensor) -> np.ndarray:
    """What is really minimised: a little of the mean diagonal is added, so that the form has an inverse."""
    found = form.double().numpy()
    return found + DAMPING * found.diagonal().mean() * np.eye(len(found))


def cost(weight: Tensor, found: Tensor, form: np.ndarray) -> np.ndarray:
    """(w - w^)^T H (w - w^) of every row."""
    error = (weight.double() - found.double()).numpy()
    return np.einsum("ri,ij,rj->r", error, form, error)


def both(weight: Tensor, form: Tensor, bits: int, group: Group, symmetric: bool = False) -> tuple[Affine, Affine]:
    """(rounded with compensation, rounded to nearest)."""
    points = (
        Uniform(bits=bits, group=group, symmetric=symmetric, rounding=rounding)  # type: ignore[arg-type]
        for rounding in ("compensated", "nearest")
    )
    ours, nearest = (METHOD.pack(weight, point, Context(form=form)) for point in points)
    return ours, nearest


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, "row"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_costs_less_than_rounding_to_nearest(bits: int, group: Group, symmetric: bool) -> None:
    for seed in range(5):
        weight, form = drawn(24, 80, seed=10 + seed), correlated(80, seed)
        ours, nearest = both(weight, form, bits, group, symmetric)
        assert cost(weight, ours.dense(), form.numpy()).sum() < 0.8 * cost(weight, nearest.dense(), form.numpy()).sum()


def on_fixed_levels(weight: Tensor, form: Tensor, scale: float, bits: int) -> Affine:
    levels = quantise(torch.full((len(weight), 1), scale * (2 ** (bits - 1) - 1)), bits, 1, True)
    return compensated(weight, inverse_factor(form), weight.shape[1], torch.ones(len(weight), 1), lambda *_: levels)


def test_two_columns_are_the_closed_form() -> None:
    """The first column goes to its nearest level; the second, once the first is fixed, has its least cost where the
    derivative of the quadratic form is zero: w2 + (h12 / h22) e1, rounded."""
    scale, bits = 0.25, 6
    weight, form = drawn(200, 2, seed=3), torch.tensor([[2.0, 0.9], [0.9, 0.7]])
    h = damped(form)
    found = on_fixed_levels(weight, form, scale, bits).dense().double().numpy()
    w = weight.double().numpy()
    first = np.round(w[:, 0] / scale) * scale
    wanted = (w[:, 1] + h[0, 1] / h[1, 1] * (w[:, 0] - first)) / scale
    clear = np.abs(wanted - np.floor(wanted) - 0.5) > 1e-4
    assert clear.sum() > 190
    np.testing.assert_array_equal(found[:, 0], first)
    np.testing.assert_array_equal(found[clear, 1], np.round(wanted[clear]) * scale)
    assert (found[:, 1] != np.round(w[:, 1] / scale) * scale).sum() > 20


@pytest.mark.parametrize("seed", range(3))
def test_each_column_is_the_best_one_given_those_before_it(seed: int) -> None:
    """The identity behind the algorithm: with columns 0..j-1 fixed, column j is rounded from where it would stand if it
    and all later columns were free, w_j + (H_FF^-1 H_FB e_B)_j, F the free columns, B the fixed ones, e their error."""
    scale, bits, width = 0.25, 6, 7
    weight, form = drawn(40, width, seed=seed), correlated(width, seed, 0.7)
    h = damped(form)
    found = on_fixed_levels(weight, form, scale, bits).dense().double().numpy()
    w, checked = weight.double().numpy(), 0
    for j in range(width):
        error = w[:, :j] - found[:, :j]
        moved = np.linalg.solve(h[j:, j:], h[j:, :j] @ error.T).T if j else np.zeros((len(w), width))
        wanted = (w[:, j] + moved[:, 0]) / scale
        clear = (np.abs(wanted - np.floor(wanted) - 0.5) > 1e-3) & (np.abs(wanted) < 2 ** (bits - 1) - 1)
        np.testing.assert_array_equal(found[clear, j], np.round(wanted[clear]) * scale)
        checked += int(clear.sum())
    assert checked > 0.9 * w.size


def test_between_the_optimum_and_rounding_to_nearest() -> None:
    """Every choice of neighbouring levels tried: the greedy codes lie between the best and the nearest, and close the
    larger part of the gap."""
    scale, bits, width = 0.5, 5, 6
    weight, form = drawn(30, width, seed=5), correlated(width, 4)
    h = damped(form)
    ours = cost(weight, on_fixed_levels(weight, form, scale, bits).dense(), h)
    base = torch.floor(weight / scale)
    tried = [
        cost(weight, (base + torch.tensor(step)) * scale, h)
        for step in itertools.product((-1.0, 0.0, 1.0, 2.0), repeat=width)
    ]
    best, nearest = np.min(tried, axis=0), cost(weight, torch.round(weight / scale) * scale, h)
    assert (best <= ours * (1 + 1e-9)).mean() > 0.9  # the greedy codes may leave the neighbours
    assert ours.sum() - best.sum() < 0.5 * (nearest.sum() - best.sum())


@given(
    rows=st.integers(1, 5),
    width=st.integers(1, 150),
    bits=st.integers(2, 8),
    group=st.sampled_from([32, 64, 128, "row"]),
    symmetric=st.booleans(),
    seed=st.integers(0, 99),
)
def test_codes_lie_in_range_whatever_the_groups(
    rows: int, width: int, bits: int, group: Group, symmetric: bool, seed: int
) -> None:
    """Groups that do not divide the row, and forms of few directions."""
    x = drawn(1 + seed % 7, width, seed=seed)
    ours, nearest = both(drawn(rows, width, seed=seed + 1), x.T @ x, bits, group, symmetric)
    assert ours.codes.values.shape == (rows, width)
    assert int(ours.codes.values.max()) < 2**bits
    assert {n: p.shape for n, p in ours.parts().items()} == {n: p.shape for n, p in nearest.parts().items()}
    assert ours.nbytes() == nearest.nbytes()
    assert bool(ours.dense().isfinite().all())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 64, "row"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_is_on_the_grid_stays(bits: int, group: Group, symmetric: bool) -> None:
    """Without an error there is nothing to move: whatever the form, D = 0."""
    on_grid = METHOD.pack(drawn(9, 100, seed=bits), Uniform(bits=bits, group=group, symmetric=symmetric)).dense()
    ours, _ = both(on_grid, correlated(100), bits, group, symmetric)
    assert torch.equal(ours.dense(), on_grid)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("group", [32, "row"])
def test_columns_that_do_not_act_together_are_rounded_to_nearest(group: Group, bits: int) -> None:
    weight = drawn(12, 90, seed=bits)
    for diagonal in (torch.ones(90), drawn(90, seed=1).abs() + 0.01, torch.zeros(90)):
        ours, nearest = both(weight, torch.diag(diagonal), bits, group)
        assert torch.equal(ours.dense(), nearest.dense())


def test_without_a_form_it_is_rounding_to_nearest() -> None:
    weight = drawn(5, 70)
    points = [Uniform(bits=3, rounding="compensated"), Uniform(bits=3)]
    ours, nearest = (METHOD.pack(weight, point).dense() for point in points)
    assert torch.equal(ours, nearest)
    assert [METHOD.wants_form(point) for point in points] == [True, False]
