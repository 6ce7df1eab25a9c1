"""Rewritten zoo models, and the same models with their weights replaced by hand."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping

import pytest
import torch
from tests.captured import captured
from tests.zoo import ZOO
from torch import fx, nn

from tersor.compiler.candidate import Step, pack
from tersor.compiler.method import Refusal
from tersor.compiler.program import Program
from tersor.compiler.rewrite import rewrite
from tersor.compiler.site import Site
from tersor.compiler.slots import parameter_of
from tersor.compiler.stores import Dense, Store
from tersor.passes.decompose.svd import Svd, TruncatedSvd
from tersor.passes.prune.magnitude import Magnitude, MagnitudePruning
from tersor.passes.quantize.half import Half, HalfPrecision
from tersor.passes.quantize.kmeans import KMeans, KMeansCodes
from tersor.passes.quantize.uniform import Uniform, UniformQuantisation

RECIPES: dict[str, tuple[Step, ...]] = {
    "uniform": (Step(UniformQuantisation(), Uniform(bits=4, group="row")),),
    "kmeans": (Step(KMeansCodes(), KMeans(bits=4, init="density")),),
    "svd": (Step(TruncatedSvd(), Svd(rank=0.4)), Step(UniformQuantisation(), Uniform(bits=8, group="row"))),
    "prune": (Step(MagnitudePruning(), Magnitude(sparsity=0.5)), Step(HalfPrecision(), Half())),
}
CHANGED = ("linear", "embedding", "recurrent")
FAST = {
    (name, recipe)
    for name in ("bert", "gpt2", "t5", "albert", "torch_encoder", "lstm_tied")
    for recipe in ("uniform", "prune")
}
EVERY_CASE = [
    pytest.param(name, recipe, marks=() if (name, recipe) in FAST else pytest.mark.slow)
    for name in ZOO
    for recipe in RECIPES
]
"""Every (model, recipe); all but a few models and two kinds of store are slow."""


def store_of(program: Program, site: Site, recipe: str) -> Store:
    weight = parameter_of(program.module, site)
    if site.kind not in CHANGED:
        return Dense(weight)
    packed = pack(weight, RECIPES[recipe])
    return pack(weight, RECIPES["kmeans"]) if isinstance(packed, Refusal) else packed  # type: ignore[return-value]


@functools.cache
def stores_of(name: str, recipe: str) -> Mapping[str, Store]:
    program = captured(name)[2]
    return {s.name: store_of(program, s, recipe) for s in program.sites if s.kind != "attention"}


def rewritten(name: str, recipe: str) -> fx.GraphModule:
    """A fresh module, in eval mode."""
    module, _ = rewrite(captured(name)[2], stores_of(name, recipe), {})
    return module.eval()


def by_hand(name: str, stores: Mapping[str, Store]) -> nn.Module:
    """The original model whose parameters have been overwritten with what the stores stand for; a parameter that the
    graph reads transposed is told by its shape or, where it is square, by its values."""
    model, _, program = captured(name)
    model = copy.deepcopy(model).eval()
    own = dict(model.named_parameters())
    shown = {s.name: parameter_of(program.module, s) for s in program.sites if s.kind != "attention"}
    with torch.no_grad():
        for site, store in stores.items():
            turned = shown[site].shape != own[site].shape or not torch.equal(shown[site], own[site])
            dense = store.dense().detach()
            own[site].copy_(dense.t() if turned else dense)
    return model
