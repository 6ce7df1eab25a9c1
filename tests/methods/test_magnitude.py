"""The magnitude pruning methods against counting, sorting and trying every mask."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tersor.compiler.method import Context
from tersor.compiler.site import Site
from tersor.passes.prune.magnitude import (
    ClassBlind,
    ClassDistribution,
    ClassUniform,
    Magnitude,
    MagnitudePruning,
    ScopedMagnitudePruning,
    weight_class,
)

METHOD = MagnitudePruning()
SITES = (
    Site("embed.weight", "embedding", "embedding.token", ("embed",), (30, 8), "float32", 960),
    Site("query.weight", "linear", "attention.query", ("query",), (8, 8), "float32", 256),
    Site("output.weight", "linear", "cross_attention.output", ("output",), (8, 8), "float32", 256),
    Site("up.weight", "linear", "ffn.up", ("up",), (16, 8), "float32", 512),
    Site("rnn.weight_hh_l0", "recurrent", "recurrent.hidden", ("rnn.weight_hh_l0",), (12, 3), "float32", 144),
    Site("head.weight", "linear", "lm_head", ("head",), (30, 8), "float32", 960),
)


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Each class on a scale of its own."""
    generator = torch.Generator().manual_seed(seed)
    scales = (0.02, 0.1, 0.5, 1.0, 0.3, 0.05)
    return {s.name: k * torch.randn(s.shape, generator=generator) for s, k in zip(SITES, scales, strict=True)}


def pruned(method: ScopedMagnitudePruning, weights: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """What is left of every tensor."""
    point = Magnitude(sparsity=sparsity)
    masks = method.survey(SITES, weights, point)
    return {s.name: method.pack(weights[s.name], point, Context(masks[s.name])).dense() for s in SITES}


def masks_of(left: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor != 0 for name, tensor in left.items()}


def energy(left: Mapping[str, Tensor]) -> float:
    return float(sum(t.double().square().sum() for t in left.values()))


def floor_of(sparsity: float, count: int) -> int:
    """floor(x n) of the number that was written, not of its nearest binary one."""
    return int(Fraction(repr(sparsity)) * count)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.29, 0.3, 0.57, 0.58, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("shape", [(10, 10), (7, 13), (1, 1), (1, 100), (40, 5)])
def test_exactly_the_asked_number_goes_and_the_smallest_first(sparsity: float, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left = METHOD.pack(weight, Magnitude(sparsity=sparsity)).dense()
    gone = left == 0
    assert int(gone.sum()) == floor_of(sparsity, weight.numel())
    assert torch.equal(left[~gone], weight[~gone])
    if bool(gone.any()) and not bool(gone.all()):
        assert float(weight[gone].abs().max()) <= float(weight[~gone].abs().min())


@pytest.mark.parametrize("dropped", range(12))
def test_no_mask_of_the_same_count_keeps_more(dropped: int) -> None:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(dropped))
    squares = weight.double().square().reshape(-1).tolist()
    best = max(sum(squares[i] for i in kept) for kept in combinations(range(12), 12 - dropped))
    left = METHOD.pack(weight, Magnitude(sparsity=(dropped + 0.5) / 12)).dense()
    assert float(left.double().square().sum()) == pytest.approx(best, rel=1e-12)


def test_ties_go_by_index() -> None:
    left = METHOD.pack(torch.ones(2, 4), Magnitude(sparsity=0.5)).dense()
    assert left.tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]


@given(st.integers(1, 400), st.integers(0, 99))
def test_the_count_is_that_of_the_written_share(count: int, percent: int) -> None:
    weight = torch.arange(1.0, count + 1).reshape(1, count)
    left = METHOD.pack(weight, Magnitude(sparsity=percent / 100)).dense()
    assert int((left == 0).sum()) == percent * count // 100


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_class_blind_counts_over_the_whole_and_keeps_the_most(sparsity: float) -> None:
    weights = tensors()
    total = sum(t.numel() for t in weights.values())
    blind, uniform, spread = (pruned(m, weights, sparsity) for m in (ClassBlind(), ClassUniform(), ClassDistribution()))
    for left in (blind, spread):
        assert sum(int((t == 0).sum()) for t in left.values()) == floor_of(sparsity, total)
    kept = torch.cat([weights[n][m] for n, m in masks_of(blind).items()]).abs()
    gone = torch.cat([weights[n][~m] for n, m in masks_of(blind).items()]).abs()
    assert float(gone.max()) <= float(kept.min())
    assert energy(blind) >= energy(uniform)
    assert energy(blind) >= energy(spread)
    assert energy(blind) > energy(uniform) or sparsity == 0


def test_class_blind_does_not_care_how_classes_are_drawn() -> None:
    weights = tensors()
    point = Magnitude(sparsity=0.5)
    renamed = tuple(Site(s.name, "linear", "ffn.up", s.paths, s.shape, s.dtype, s.bytes) for s in SITES)
    one, other = (ClassBlind().survey(sites, weights, point) for sites in (SITES, renamed))
    assert all(torch.equal(one[s.name], other[s.name]) for s in SITES)
    uniform = ClassUniform().survey(renamed, weights, point)
    assert all(torch.equal(one[s.name], uniform[s.name]) for s in SITES), "one class: the same as class-blind"


@pytest.mark.parametrize("sparsity", [0.1, 0.33, 0.9])
def test_class_uniform_takes_the_share_of_every_class(sparsity: float) -> None:
    left = pruned(ClassUniform(), tensors(), sparsity)
    classes: dict[str, list[Tensor]] = {}
    for site in SITES:
        classes.setdefault(weight_class(site), []).append(left[site.name])
    assert set(classes) == {"embedding", "attention", "ffn", "recurrent", "head"}
    for members in classes.values():
        count = sum(t.numel() for t in members)
        assert sum(int((t == 0).sum()) for t in members) == floor_of(sparsity, count)


def test_class_distribution_is_class_blind_in_standard_deviations() -> None:
    weights = tensors()
    classes: dict[str, list[Tensor]] = {}
    for site in SITES:
        classes.setdefault(weight_class(site), []).append(weights[site.name].reshape(-1))
    sigma = {c: torch.cat(members).double().std(correction=0) for c, members in classes.items()}
    scaled = {s.name: (weights[s.name].double() / sigma[weight_class(s)]).float() for s in SITES}
    ours, blind = masks_of(pruned(ClassDistribution(), weights, 0.6)), masks_of(pruned(ClassBlind(), scaled, 0.6))
    assert all(torch.equal(ours[s.name], blind[s.name]) for s in SITES)


@pytest.mark.parametrize("factor", [2.0**-6, 2.0, 2.0**10])
def test_scaling_a_class_leaves_all_masks_of_class_distribution(factor: float) -> None:
    weights = tensors()
    grown = {s.name: weights[s.name] * (factor if weight_class(s) == "attention" else 1) for s in SITES}
    before, after = (masks_of(pruned(ClassDistribution(), w, 0.6)) for w in (weights, grown))
    assert all(torch.equal(before[s.name], after[s.name]) for s in SITES)
    blind = masks_of(pruned(ClassBlind(), grown, 0.6))
    assert not all(torch.equal(blind[s.name], masks_of(pruned(ClassBlind(), weights, 0.6))[s.name]) for s in SITES)


def test_classes_equal_up_to_scale_lose_nearly_the_same_share() -> None:
    """Within four standard deviations, 0.5 / sqrt(n) each, of the share of a class."""
    generator = torch.Generator().manual_seed(1)
    scale = {"embedding": 0.02, "attention": 3.0, "ffn": 1.0, "recurrent": 50.0, "head": 0.1}
    weights = {s.name: scale[weight_class(s)] * torch.randn(s.shape, generator=generator) for s in SITES}
    left = pruned(ClassDistribution(), weights, 0.5)
    for site in SITES:
        share = float((left[site.name] == 0).float().mean())
        assert abs(share - 0.5) <= 4 * 0.5 / left[site.name].numel() ** 0.5


def test_a_class_of_zeros_is_no_division_by_zero() -> None:
    weights = tensors() | {"up.weight": torch.zeros(16, 8)}
    left = pruned(ClassDistribution(), weights, 0.5)
    assert all(bool(t.isfinite().all()) for t in left.values())
    assert not left["up.weight"].any()


def test_alone_a_scoped_method_prunes_its_tensor_as_a_scope_of_its_own() -> None:
    weight = tensors()["up.weight"]
    for method in (ClassBlind(), ClassUniform(), ClassDistribution()):
        assert torch.equal(method.pack(weight, Magnitude()).dense(), METHOD.pack(weight, Magnitude()).dense())
