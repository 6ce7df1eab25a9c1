"""One-shot magnitude pruning and its three ways to share the loss among weight classes (survey section 2.1.2).

    prune.magnitude                     each tensor loses its smallest |w|
    prune.magnitude.class_blind         one threshold on |w| over all tensors of the rule
    prune.magnitude.class_uniform       each weight class loses the same share
    prune.magnitude.class_distribution  each class loses |w| < lambda sigma_c; lambda is the quantile of |w| / sigma_c

Exactly floor(sparsity * n) weights go on the chosen scope; on ties the one with the lower index goes first. Kept
values stay open for a following method; where they stand is stored as a bitmask or as relative indices, whichever
takes fewer bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tersor.compiler.method import Context, Method, Params, Refusal
from tersor.compiler.site import Site
from tersor.compiler.stores import Bitmask, Codes, Delta, Dense, Positions, Store
from tersor.compiler.stores.sparse import gap_bits


class Magnitude(Params):
    sparsity: Annotated[float, Field(ge=0, lt=1, description="share of the weights set to zero")] = 0.5
    store: Annotated[
        Literal["auto", "bitmask", "delta"], Field(description="how the kept places are stored; `auto` is the smaller")
    ] = "auto"


def dropped(sparsity: float, count: int) -> int:
    """floor(sparsity * count) of the decimal number that was written: 29% of 100 is 29, though 0.29 * 100 < 29 in
    binary."""
    return floor(Fraction(repr(sparsity)) * count)


def keep_mask(scores: Tensor, drop: int) -> Tensor:
    """True for all but the `drop` smallest scores; ties go by index."""
    order = scores.reshape(-1).argsort(stable=True)
    keep = torch.ones(scores.numel(), dtype=torch.bool)
    keep[order[:drop]] = False
    return keep.reshape(scores.shape)


def sparse_store(weight: Tensor, keep: Tensor, form: Literal["auto", "bitmask", "delta"]) -> Store:
    """The kept weights and their places."""
    values = Dense(weight[keep].reshape(1, -1))
    if form != "delta":
        bitmask = Bitmask(Codes(keep.to(torch.uint8), 1), values)
        if form == "bitmask":
            return bitmask
    places = keep.reshape(-1).nonzero().reshape(-1).to(torch.int32)
    delta = Delta(tuple(weight.shape), Positions(places, gap_bits(places.numpy())), values)
    return delta if form == "delta" or delta.nbytes() < bitmask.nbytes() else bitmask


def weight_class(site: Site) -> str:
    """The survey's classes: embedding, attention, ffn, recurrent (gates), head (softmax)."""
    if site.kind in ("embedding", "recurrent"):
        return site.kind
    return site.role.split(".")[0].removeprefix("cross_").replace("lm_head", "head")


class MagnitudePruning(Method[Magnitude]):
    id = "prune.magnitude"
    title = "one-shot magnitude pruning"
    source = "survey section 2.1.2"
    kinds = frozenset({"linear", "embedding", "recurrent"})
    Params = Magnitude

    def refuse(self, shape: tuple[int, ...], point: Magnitude) -> Refusal | None:
        if not shape or 0 in shape:
            return Refusal("there is nothing to prune")
        return None

    def keep(self, tensor: Tensor, point: Magnitude, context: Context) -> Tensor:
        """The mask of kept weights."""
        return keep_mask(tensor.abs(), dropped(point.sparsity, tensor.numel()))

    def pack(self, tensor: Tensor, point: Magnitude, context: Context = Context()) -> Store:
        return sparse_store(tensor, self.keep(tensor, point, context), point.store)

    def examples(self) -> tuple[Magnitude, ...]:
        return tuple(Magnitude(sparsity=s) for s in (0.9, 0.7, 0.5, 0.3))


class ScopedMagnitudePruning(MagnitudePruning):
    """Pruning whose mask depends on all tensors of the rule: the scope of a tensor is its mask, found in `survey`."""

    scope = "rule"

    def survey(self, sites: Sequence[Site], tensors: Mapping[str, Tensor], point: Magnitude) -> Mapping[str, Tensor]:
        masks: dict[str, Tensor] = {}
        for group in self.pools(sites):
            scores = torch.cat([self.scores(site, sites, tensors).reshape(-1) for site in group])
            kept = keep_mask(scores, dropped(point.sparsity, scores.numel()))
            sizes = [tensors[site.name].numel() for site in group]
            for site, mask in zip(group, kept.split(sizes), strict=True):
                masks[site.name] = mask.reshape(tensors[site.name].shape)
        return masks

    def pools(self, sites: Sequence[Site]) -> list[list[Site]]:
        """The sets of sites that share one threshold."""
        return [list(sites)]

    def scores(self, site: Site, sites: Sequence[Site], tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors[site.name].abs()

    def keep(self, tensor: Tensor, point: Magnitude, context: Context) -> Tensor:
        if context.scope is None:  # a tensor alone is a scope of its own
            return super().keep(tensor, point, context)
        mask: Tensor = context.scope
        return mask


class ClassBlind(ScopedMagnitudePruning):
    id = "prune.magnitude.class_blind"
    title = "magnitude pruning, one threshold for all classes"


class ClassUniform(ScopedMagnitudePruning):
    id = "prune.magnitude.class_uniform"
    title = "magnitude pruning, the same share of every class"

    def pools(self, sites: Sequence[Site]) -> list[list[Site]]:
        return [[s for s in sites if weight_class(s) == c] for c in sorted({weight_class(s) for s in sites})]


class ClassDistribution(ScopedMagnitudePruning):
    id = "prune.magnitude.class_distribution"
    title = "magnitude pruning, thresholds in standard deviations of the class"

    def scores(self, site: Site, sites: Sequence[Site], tensors: Mapping[str, Tensor]) -> Tensor:
        members = [tensors[s.name].reshape(-1) for s in sites if weight_class(s) == weight_class(site)]
        sigma = torch.cat(members).std(correction=0).clamp_min(torch.finfo(torch.float32).tiny)
        return tensors[site.name].abs() / sigma
