"""The columns of an allocation that some best solution may take, found by its relaxation.

    min  price x    s.t.  cover x = 1,  rows x <= room,  links x <= 0,  x in {0, 1}

The relaxation (0 <= x <= 1) is a lower bound, its reduced costs say what taking a column would add to it, and its
rounding, where that is feasible, is an upper bound: a column that adds more than lies between is in no best solution.
One site much larger than the others (the token table) leaves a wide gap, so the relaxation is solved once more for
every column of it that is not yet ruled out: with that site decided, the others round almost exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array, csr_array

TOLERANCE = 1e-6
"""Of the solver, in a relaxation."""
SLACK = 1e-2
"""What two values of a goal scaled to 1e4 may differ by where they are equal."""


@dataclass(frozen=True)
class _Relaxed:
    """A relaxation's value, what every column adds to it, and the price of its rounding (infinite: not feasible)."""

    value: float
    adds: np.ndarray
    rounded: float


@dataclass(frozen=True)
class Links:
    """What columns share, by columns of its own, which cover nothing: column `first[i]` is taken only with column
    `then[i]`. At most one of the columns of a `row` is ever taken, so that they need one constraint together:

        sum of x over the columns of a row <= x of the column they share
    """

    row: np.ndarray
    first: np.ndarray
    then: np.ndarray

    def matrix(self, columns: int) -> csr_array:
        """The left side minus the right one, (rows, columns)."""
        _, start, number = np.unique(self.row, return_index=True, return_inverse=True)
        ones = np.concatenate([np.ones(len(number)), -np.ones(len(start))])
        places = (np.concatenate([number, np.arange(len(start))]), np.concatenate([self.first, self.then[start]]))
        return coo_array((ones, places), shape=(len(start), columns)).tocsr()

    def follow(self, taken: np.ndarray) -> None:
        """Take what the taken columns share, and no more."""
        taken[self.then] = 0
        taken[self.then[taken[self.first] > 0.5]] = 1


NONE = Links(*[np.zeros(0, int)] * 3)


def needed(price: np.ndarray, rows: np.ndarray, room: np.ndarray, cover: csr_array, links: Links = NONE) -> np.ndarray:
    """The numbers of the columns that a best solution may take: all of them where no feasible rounding is found."""
    every = np.arange(len(price))
    root = _relaxed(price, rows, room, cover, links, np.ones(len(price)))
    if root is None:
        return every
    options = _columns_of(cover, _largest(rows, room, cover))
    best, found = root.rounded, []
    for column in options[np.argsort(root.adds[options])]:
        if root.value + root.adds[column] > best + SLACK:
            break
        allowed = np.ones(len(price))
        allowed[options] = options == column
        branch = _relaxed(price, rows, room, cover, links, allowed)
        if branch is not None:
            found.append((branch, allowed))
            best = min(best, branch.rounded)
    if not np.isfinite(best):
        return every
    kept = np.zeros(len(price), bool)
    for branch, allowed in found:
        kept |= (allowed > 0) & (branch.value + branch.adds <= best + SLACK)
    return every[kept]


def _relaxed(
    price: np.ndarray, rows: np.ndarray, room: np.ndarray, cover: csr_array, links: Links, most: np.ndarray
) -> _Relaxed | None:
    """The relaxation with columns of at most `most`; None where nothing fits."""
    bounds: Any = np.stack([np.zeros(len(price)), most], axis=1)
    shared = links.matrix(len(price)).toarray()
    below, most_below = np.concatenate([rows, shared]), np.concatenate([room, np.zeros(len(shared))])
    every = np.ones(cover.shape[0])
    result: Any = linprog(price, below, most_below, cover.toarray(), every, bounds=bounds, method="highs")
    if result.x is None:
        return None
    taken = _rounded(result.x, rows, cover)
    links.follow(taken)
    feasible = bool((cover @ taken == 1).all() and (rows @ taken <= room).all())
    return _Relaxed(result.fun, result.lower.marginals, float(price @ taken) if feasible else np.inf)


def _rounded(x: np.ndarray, rows: np.ndarray, cover: csr_array) -> np.ndarray:
    """For every site the column that the relaxation takes; of several, the one that needs the least room."""
    need = rows.sum(axis=0)
    taken = np.zeros(len(x))
    for site in range(cover.shape[0]):
        columns = _columns_of(cover, site)
        used = columns[x[columns] > TOLERANCE]
        if len(used):
            taken[used[np.argmin(need[used])]] = 1
    return taken


def _largest(rows: np.ndarray, room: np.ndarray, cover: csr_array) -> int:
    """The site between whose columns lies the largest share of some limit."""
    share = (rows / np.maximum(np.abs(room), 1e-300)[:, None]).T  # (columns, limits)
    spans = [np.ptp(share[_columns_of(cover, site)], axis=0).max(initial=0.0) for site in range(cover.shape[0])]
    return int(np.argmax(spans))


def _columns_of(cover: csr_array, site: int) -> np.ndarray:
    columns: np.ndarray = cover.indices[cover.indptr[site] : cover.indptr[site + 1]]
    return columns
