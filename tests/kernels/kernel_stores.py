"""A store of every form that a method can choose, made of a weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tersor.compiler.stores import Affine, Banked, Bitmask, Chain, Codebook, Codes, Delta, Dense, Positions, Store
from tersor.compiler.stores.sparse import gap_bits
from tersor.passes.prune.bank import Bank, BankPruning
from tersor.passes.prune.block import Block, BlockPruning
from tersor.passes.quantize.product import product


def values(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def codebook(weight: Tensor, bits: int) -> Codebook:
    """Equal steps would be affine: the levels are quantiles."""
    table = Dense.of(weight.flatten().quantile((torch.arange(2**bits) + 0.5) / 2**bits).unique(), "float16")
    edges = (table.values[1:] + table.values[:-1]) / 2
    return Codebook(Codes(torch.bucketize(weight, edges).to(torch.uint8), bits), table)


def affine(weight: Tensor, bits: int = 8, zero: bool = True) -> Affine:
    """One scale per row."""
    low, high = weight.amin(1, keepdim=True).clamp_max(0), weight.amax(1, keepdim=True).clamp_min(0)
    if not zero:
        high = torch.maximum(high, -low)
        low = -high
    scale = Dense.of(((high - low) / (2**bits - 1)).clamp_min(1e-6), "float16")
    origin = (-low / scale.values).round().clamp(0, 2**bits - 1) if zero else torch.full_like(low, 2 ** (bits - 1))
    codes = ((weight / scale.values).round() + origin).clamp(0, 2**bits - 1).to(torch.uint8)
    return Affine(Codes(codes, bits), scale, Codes(origin.to(torch.uint8), bits) if zero else None, weight.shape[1])


def sparse(weight: Tensor, density: float, inner: Callable[[Tensor], Store], form: str = "bitmask") -> Store:
    """The largest values kept, at least one."""
    kept = max(1, round(density * weight.numel()))
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[weight.abs().flatten().argsort(descending=True)[:kept]] = True
    mask = mask.view(weight.shape)
    held = inner(weight[mask].view(1, -1))
    if form == "bitmask":
        return Bitmask(Codes(mask.to(torch.uint8), 1), held)
    places = mask.flatten().nonzero().flatten().to(torch.int32)
    return Delta(tuple(weight.shape), Positions(places, gap_bits(places.numpy())), held)


def chain(weight: Tensor, inner: Callable[[Tensor], Store]) -> Chain:
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    rank = max(1, min(weight.shape) // 2)
    left, right = u[:, :rank] * s[:rank].sqrt(), s[:rank].sqrt()[:, None] * v[:rank]
    return Chain(inner(left.contiguous()), inner(right.contiguous()))


def kept(store: Banked, inner: Callable[[Tensor], Store]) -> Banked:
    """The same blocks or banks with their values in another form."""
    return store.rebuilt({"places": store.places, "values": inner(store.values.dense())})


def blocks(weight: Tensor, inner: Callable[[Tensor], Store], sparsity: float = 0.75) -> Banked:
    return kept(BlockPruning().pack(weight, Block(sparsity=sparsity)), inner)


def banks(weight: Tensor, inner: Callable[[Tensor], Store]) -> Banked:
    return kept(BankPruning().pack(weight, Bank()), inner)


STORES: dict[str, Callable[[Tensor], Store]] = {
    "dense": Dense,
    "half": lambda w: Dense.of(w, "float16"),
    "bf16": lambda w: Dense.of(w, "bfloat16"),
    "affine": affine,
    "codebook1": lambda w: codebook(w, 1),
    "codebook4": lambda w: codebook(w, 4),
    "codebook8": lambda w: codebook(w, 8),
    "product4": lambda w: product(w, 16, 4, False),
    "product8": lambda w: product(w, 256, 2, False),
    "product one": lambda w: product(w, 256, 8, True),
    "bitmask": lambda w: sparse(w, 0.5, Dense),
    "delta": lambda w: sparse(w, 0.05, Dense, "delta"),
    "sparse codebook": lambda w: sparse(w, 0.3, lambda v: codebook(v, 4)),
    "sparse affine": lambda w: sparse(w, 0.3, affine, "delta"),
    "sparse symmetric": lambda w: sparse(w, 0.3, lambda v: affine(v, 5, zero=False)),
    "sparse half": lambda w: sparse(w, 0.2, lambda v: Dense.of(v, "float16")),
    "blocks": lambda w: blocks(w, Dense),
    "blocks symmetric": lambda w: blocks(w, lambda v: affine(v, zero=False)),
    "dense blocks": lambda w: blocks(w, affine, 0.2),
    "banks": lambda w: banks(w, Dense),
    "banks symmetric": lambda w: banks(w, lambda v: affine(v, 5, zero=False)),
    "banks codebook": lambda w: banks(w, lambda v: codebook(v, 4)),
    "chain": lambda w: chain(w, Dense),
    "chain affine": lambda w: chain(w, affine),
    "chain codebook": lambda w: chain(w, lambda f: codebook(f, 5)),
    "chain sparse": lambda w: chain(w, lambda f: sparse(f, 0.4, Dense)),
}
