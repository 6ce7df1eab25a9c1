"""What may be left out of an allocation, against solving with everything and against trying everything."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from tersor.compiler.narrow import Links, needed


def covering(sites: int, options: int) -> csr_array:
    """Every site has its own `options` columns."""
    return csr_array(np.kron(np.eye(sites), np.ones(options)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.floats(0, 1))
def test_a_best_solution_remains(seed: int, sites: int, options: int, limits: int, share: float) -> None:
    random = np.random.default_rng(seed)
    price = np.round(random.uniform(0, 1e4, sites * options))
    rows = np.round(random.uniform(1, 100, (limits, sites * options)))
    every = [[s * options + o for s, o in enumerate(taken)] for taken in product(range(options), repeat=sites)]
    needs = np.array([rows[:, taken].sum(axis=1) for taken in every])
    room = needs.min(axis=0) + share * (needs.max(axis=0) - needs.min(axis=0))
    within = [taken for taken, need in zip(every, needs, strict=True) if (need <= room).all()]
    kept = set(needed(price, rows, room, covering(sites, options)))
    if within:
        best = min(price[taken].sum() for taken in within)
        assert any(price[taken].sum() == best and kept >= set(taken) for taken in within)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.floats(0, 1))
def test_with_what_columns_share(seed: int, sites: int, options: int, parts: int, share: float) -> None:
    """Every column takes one of some further columns, or none of them, with it."""
    random = np.random.default_rng(seed)
    own = sites * options
    price = np.round(random.uniform(0, 1e4, own + parts))
    rows = np.round(random.uniform(1, 100, (1, own + parts)))
    takes = random.integers(-1, parts, own)
    first = np.flatnonzero(takes >= 0)
    links = Links(first // options * parts + takes[first], first, own + takes[first])
    chosen = [[s * options + o for s, o in enumerate(taken)] for taken in product(range(options), repeat=sites)]
    every = [taken + sorted({own + int(takes[c]) for c in taken if takes[c] >= 0}) for taken in chosen]
    needs = np.array([rows[:, taken].sum(axis=1) for taken in every])
    room = needs.min(axis=0) + share * (needs.max(axis=0) - needs.min(axis=0))
    within = [taken for taken, need in zip(every, needs, strict=True) if (need <= room).all()]
    cover = csr_array(np.hstack([covering(sites, options).toarray(), np.zeros((sites, parts))]))
    kept = set(needed(price, rows, room, cover, links))
    best = min(price[taken].sum() for taken in within)
    assert any(price[taken].sum() == best and kept >= set(taken) for taken in within)


@pytest.mark.parametrize("table", [1, 40])
def test_little_remains_beside_a_large_table(table: int) -> None:
    """The width of every matrix of a model, one of which is `table` times as large as the others."""
    sites, bits = 60, np.arange(2, 9)
    random = np.random.default_rng(0)
    sizes = np.array([table, *random.uniform(0.9, 1.1, sites - 1)])
    rows = np.outer(sizes, bits).reshape(1, -1)
    price = np.outer(random.uniform(0.5, 2, sites), 4.0**-bits).reshape(-1)
    price *= 1e4 / price.max()
    room, cover = np.array([4.3 * sizes.sum()]), covering(sites, len(bits))
    kept = needed(price, rows, room, cover)
    assert len(kept) < len(price) / 3

    def best(columns: np.ndarray) -> float:
        constraints = [LinearConstraint(cover[:, columns], 1, 1), LinearConstraint(rows[:, columns], -np.inf, room)]
        options = {"mip_rel_gap": 1e-6}
        found = milp(price[columns], constraints=constraints, integrality=1, bounds=Bounds(0, 1), options=options)
        return float(found.fun)

    assert best(kept) == pytest.approx(best(np.arange(len(price))), rel=1e-5)


def test_nothing_is_left_out_where_nothing_fits() -> None:
    kept = needed(np.ones(4), np.full((1, 4), 2.0), np.ones(1), covering(2, 2))
    assert kept.tolist() == [0, 1, 2, 3]
