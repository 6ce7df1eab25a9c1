"""quant.pq against its definition written out, brute force, and scipy's k-means."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.cluster.vq import kmeans2
from tests.laws.cases import drawn
from torch import Tensor

from tersor.compiler.method import Context
from tersor.compiler.stores import Product
from tersor.passes.quantize.clusters import cluster, distinct, nearest_centroid
from tersor.passes.quantize.product import ProductParams, ProductQuantisation

METHOD = ProductQuantisation()


def packed(weight: Tensor, form: Tensor | None = None, **point: object) -> Product:
    return METHOD.pack(weight, ProductParams(**point), Context(form=form))  # type: ignore[arg-type]


def parts(width: int, block: int) -> list[slice]:
    return [slice(at, min(at + block, width)) for at in range(0, width, block)]


@pytest.mark.parametrize("block", [2, 4, 8])
@pytest.mark.parametrize("count", [16, 256])
@pytest.mark.parametrize("books", ["each", "one"])
def test_bits_are_those_of_the_equation(block: int, count: int, books: str) -> None:
    store = packed(drawn(700, 40), codes=count, block=block, books=books)
    width = {16: 4, 256: 8}[count]
    book = 16 * count * (40 if books == "each" else block)
    assert store.bits() == 700 * (40 // block) * width + book


@pytest.mark.parametrize("books", ["each", "one"])
def test_every_sub_vector_gets_its_nearest_centroid(books: str) -> None:
    weight = drawn(90, 23)
    store = packed(weight, codes=16, block=4, books=books)
    table = store.table.values
    dense = store.dense()
    for i, (g, part) in itertools.product(range(0, 90, 7), enumerate(parts(23, 4))):
        book = table[:, part] if books == "each" else table[:, : part.stop - part.start]
        errors = (weight[i, part] - book).square().sum(1)
        chosen = int(store.codes.values[i, g])
        assert float(errors[chosen]) <= float(errors.min()) * (1 + 1e-5)
        assert torch.equal(dense[i, part], book[chosen])


def test_as_many_centroids_as_rows_are_exact() -> None:
    weight = drawn(16, 30).half().float()
    assert torch.equal(packed(weight, codes=16, block=8).dense(), weight)


@pytest.mark.parametrize("dimensions", [2, 4])
def test_clusters_are_as_good_as_those_of_scipy(dimensions: int) -> None:
    points = drawn(3000, dimensions)

    def error(centroids: Tensor) -> float:
        return float((points - centroids[nearest_centroid(points, centroids)]).square().sum())

    theirs = [kmeans2(points.numpy(), 16, iter=30, minit="++", seed=s)[0] for s in range(3)]
    best = min(error(torch.from_numpy(c)) for c in theirs)
    assert error(cluster(points, 16)) <= 1.05 * best


def test_two_clusters_of_few_points_against_all_partitions() -> None:
    points = torch.cat([drawn(4, 2) + 6, drawn(4, 2, seed=1) - 6])

    def spread(some: Tensor) -> float:
        return float((some - some.mean(0)).square().sum())

    least = min(
        spread(points[list(a)]) + spread(points[[i for i in range(8) if i not in a]])
        for n in range(1, 8)
        for a in itertools.combinations(range(8), n)
    )
    found = cluster(points, 2)
    ours = float((points - found[nearest_centroid(points, found)]).square().sum())
    assert ours == pytest.approx(least, rel=1e-5)


def test_distinct_points() -> None:
    points = drawn(5, 3)[torch.arange(1000) % 5]
    found = distinct(points, 5)
    assert found is not None
    assert torch.equal(found, torch.unique(points, dim=0))
    assert distinct(points, 4) is None


@pytest.mark.parametrize("books", ["each", "one"])
def test_compensation_without_correlation_is_rounding_to_nearest(books: str) -> None:
    """U is a multiple of the identity: no error moves."""
    weight = drawn(200, 24)
    plain = packed(weight, codes=16, block=4, books=books).dense()
    moved = packed(weight, torch.eye(24), codes=16, block=4, books=books, rounding="compensated").dense()
    difference = float((moved - weight).square().sum()) / float((plain - weight).square().sum())
    assert difference == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("books", ["each", "one"])
def test_compensation_lowers_the_error_that_matters(books: str) -> None:
    weight, mixing = drawn(300, 32), drawn(32, 32, seed=3)
    form = mixing @ mixing.T

    def error(store: Product) -> float:
        change = store.dense() - weight
        return float((change @ form * change).sum())

    plain = error(packed(weight, form, codes=16, block=4, books=books))
    moved = error(packed(weight, form, codes=16, block=4, books=books, rounding="compensated"))
    assert moved < 0.8 * plain
