"""quant.kmeans.static against the exact optimum of one-dimensional k-means, by dynamic programming."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.passes.quantize.kmeans import KMeans, KMeansCodes, SortedWeights, nearest

METHOD = KMeansCodes()
HALF = 2.0**-11
"""Levels are stored in 16 bits: each is off by at most this share of itself."""


def optimum(values: np.ndarray, k: int) -> float:
    """min sum of squared distances to k levels: best[j][i] = min over m of best[j-1][m] + error of one cluster over
    m..i."""
    x = np.sort(values.astype(np.float64))
    n = len(x)
    sums, squares = np.concatenate([[0], x.cumsum()]), np.concatenate([[0], (x * x).cumsum()])

    def cluster(first: int, last: int) -> float:
        count, total = last - first, sums[last] - sums[first]
        return max(0.0, squares[last] - squares[first] - total * total / count)

    best = [0.0] + [float("inf")] * n
    for _ in range(k):
        best = [0.0] + [min(best[m] + cluster(m, i) for m in range(i)) for i in range(1, n + 1)]
    return best[n]


def error_of(values: np.ndarray, dense: torch.Tensor) -> float:
    return float(((dense.double().numpy().reshape(-1) - values.astype(np.float64)) ** 2).sum())


def test_the_oracle_itself_on_three_points() -> None:
    assert optimum(np.array([0.0, 1.0, 5.0]), 1) == pytest.approx(14.0)
    assert optimum(np.array([0.0, 1.0, 5.0]), 2) == pytest.approx(0.5)
    assert optimum(np.array([0.0, 1.0, 5.0]), 3) == pytest.approx(0.0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_never_below_the_optimum_and_near_it(seed: int, bits: int) -> None:
    values = np.random.default_rng(seed).standard_normal(60).astype(np.float32)
    store = METHOD.pack(torch.from_numpy(values[None]), KMeans(bits=bits))
    found, best = error_of(values, store.dense()), optimum(values, 2**bits)
    assert found >= best * (1 - 1e-6)
    assert found <= 3 * best + 60 * (HALF * np.abs(values).max()) ** 2
    assert found <= float(((values - values.mean()) ** 2).sum())


def test_two_clusters_far_apart_are_found_exactly() -> None:
    values = torch.tensor([[-1.0, -1.5, -0.5, 8.0, 8.5, 7.5]])
    store = METHOD.pack(values, KMeans(bits=1))
    assert store.dense().tolist() == [[-1.0, -1.0, -1.0, 8.0, 8.0, 8.0]]


@pytest.mark.parametrize("start", ["density", "linear"])
@pytest.mark.parametrize("levels", [2, 5, 16])
def test_at_the_end_every_level_is_the_mean_of_the_weights_nearest_to_it(start: str, levels: int) -> None:
    weights = SortedWeights(torch.randn(500, generator=torch.Generator().manual_seed(levels)))
    table = weights.fit(levels, start)
    codes = nearest(weights.values, table)
    by_hand = (weights.values[:, None] - table[None]).abs().argmin(1)
    assert torch.equal(table[codes], table[by_hand])
    for level in range(levels):
        members = weights.values[codes == level].double()
        assert members.numel(), "no level of a continuous sample may stay empty"
        assert float(members.mean()) == pytest.approx(float(table[level]), abs=1e-6)


@pytest.mark.parametrize("start", ["density", "linear"])
def test_no_step_makes_the_error_larger(start: str) -> None:
    weights = SortedWeights(torch.randn(300, generator=torch.Generator().manual_seed(1)).pow(3))
    x = weights.values.double().numpy()
    table = weights.start(8, start).double().numpy()
    errors = []
    for _ in range(30):
        codes = np.abs(x[:, None] - table[None]).argmin(1)
        errors.append(((x - table[codes]) ** 2).sum())
        table = np.array([x[codes == i].mean() if (codes == i).any() else table[i] for i in range(8)])
    ended = weights.error(weights.fit(8, start))
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(errors))
    assert ended <= errors[-1] * (1 + 1e-5)


@given(st.lists(st.sampled_from([-3.0, -0.5, 0.0, 0.25, 1.0, 2.0, 100.0]), min_size=1, max_size=40), st.integers(3, 8))
def test_as_many_levels_as_values_leave_no_error(values: list[float], bits: int) -> None:
    tensor = torch.tensor([values])
    assert torch.equal(METHOD.pack(tensor, KMeans(bits=bits)).dense(), tensor)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50), st.integers(1, 8))
def test_every_weight_gets_its_nearest_level(values: list[float], bits: int) -> None:
    tensor = torch.tensor([values])
    store = METHOD.pack(tensor, KMeans(bits=bits))
    table = store.table.values.double()
    assert table.numel() <= 2**bits
    assert torch.equal(table, table.sort().values)
    distance = (tensor.double().reshape(-1, 1) - table).abs()
    chosen = (store.dense().double() - tensor.double()).abs().reshape(-1)
    assert bool((chosen <= distance.min(1).values * (1 + 1e-6) + 1e-6 * tensor.abs().max()).all())
    assert store.nbytes() == -(-len(values) * bits // 8) + 2 * table.numel()


def test_best_is_the_better_of_both_starts() -> None:
    for seed in range(5):
        tensor = torch.randn(1, 200, generator=torch.Generator().manual_seed(seed)).pow(3)
        error = {
            init: float((METHOD.pack(tensor, KMeans(bits=3, init=init)).dense() - tensor).square().sum())
            for init in ("best", "density", "linear")
        }
        assert error["best"] <= min(error["density"], error["linear"]) * 1.001


def test_several_points_at_once_are_what_each_is_alone() -> None:
    tensor = torch.randn(9, 30, generator=torch.Generator().manual_seed(0))
    points = METHOD.examples()
    for point, together in zip(points, METHOD.pack_each(tensor, points), strict=True):
        assert torch.equal(together.dense(), METHOD.pack(tensor, point).dense())
