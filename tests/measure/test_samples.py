"""Prices from samples of many sites at a time against every weight packed by itself."""

from __future__ import annotations

import pytest
import torch
from tests.measure.test_rows import CANDIDATES, EXPONENT, matrices

from tersor.compiler.candidate import pack
from tersor.compiler.measure import samples
from tersor.compiler.measure.damage import relative_error
from tersor.compiler.measure.rows import Price, by_row
from tersor.compiler.measure.samples import price_samples, sampled_rows
from tersor.compiler.measure.size import described_bytes
from tersor.compiler.method import Refusal
from tersor.compiler.site import Site
from tersor.passes.quantize.uniform import UniformQuantisation


def site(name: str, shape: tuple[int, int]) -> Site:
    return Site(**{**vars(matrices()[0]), "name": name, "shape": shape})


@pytest.mark.parametrize("together", [1, samples.TOGETHER])
def test_a_sample_tells_the_error_of_every_weight(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "TOGETHER", together)
    shapes = {"large": (4000, 256), "small": (50, 256), "other width": (600, 96), "large too": (3000, 256)}
    generator = torch.Generator().manual_seed(1)
    tasks = []
    for scale, (name, shape) in enumerate(shapes.items(), 1):
        assert all(by_row(site(name, shape), c) for c in CANDIDATES)
        weight = scale * torch.randn(shape, generator=generator) + torch.randn(shape, generator=generator) ** 3
        tasks.append((site(name, shape), weight, CANDIDATES))
    assert sampled_rows(tasks[0][0]) < 4000
    assert sampled_rows(tasks[1][0]) == 50
    found = price_samples(tasks)
    assert found.keys() == shapes.keys()
    for where, weight, _ in tasks:
        for candidate, price in zip(CANDIDATES, found[where.name], strict=True):
            store = pack(weight, candidate.steps)
            assert isinstance(price, Price)
            assert not isinstance(store, Refusal)
            assert price.damage is None
            assert abs(price.bytes - described_bytes(where, store)) <= EXPONENT
            # The mean of 128 rows of independent values is off by a few per cent at most; all of 50 rows are drawn.
            allowed = 1e-3 if where.name == "small" else 0.05
            assert price.error == pytest.approx(relative_error(weight, store.dense() - weight), rel=allowed)


def test_what_is_refused_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    where, weight = site("a", (40, 96)), torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    uniform = [c for c in CANDIDATES if isinstance(c.steps[0].method, UniformQuantisation)]
    monkeypatch.setattr(
        UniformQuantisation, "refuse", lambda _, shape, point: Refusal("no") if point.bits == 3 else None
    )
    prices = price_samples([(where, weight, uniform)])["a"]
    refused = [c.steps[0].point.bits for c, p in zip(uniform, prices, strict=True) if isinstance(p, Refusal)]
    assert refused == [3]
