"""Attention as steps, over masks that are prepared once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.backends.numba.attention import PreparedMask
from tersor.backends.numba.attention16steps import AttentionShape, Rows, attention16_step, takes_width
from tersor.backends.numba.decodersteps import Cache, append_step, attend_step
from tersor.backends.numba.layout import ceil_to
from tersor.backends.numba.native.builder import Builder
from tersor.backends.numba.native.graph import Handler
from tersor.backends.numba.native.program import TorchCall
from tersor.backends.numba.native.values import Derived, Operand, Value
from tersor.backends.numba.steps import attention_tile
from tersor.compiler.modules import Attention

MANY = 4
"""Queries from which on attention in 16-bit integers, which takes a tile of them at once, is the faster one."""


def key_major(mask: Tensor, tile: int) -> Tensor | None:
    """A boolean (True: seen) or additive mask (batch, 1, queries, keys), key by key and padded; None if it hides
    nothing.
    """
    if mask.dtype is torch.bool:
        if bool(mask.all()):
            return None
        mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    turned = mask[:, 0].mT.to(torch.float32)
    return F.pad(turned, (0, ceil_to(turned.shape[-1], tile) - turned.shape[-1])).contiguous()


def query_major(mask: Tensor, tile: int) -> Tensor | None:
    """A boolean (True: seen) or additive mask (batch, heads, queries, keys), with keys padded; None if it hides
    nothing.
    """
    if mask.dtype is torch.bool:
        if bool(mask.all()):
            return None
        mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    return F.pad(mask.to(torch.float32), (0, ceil_to(mask.shape[-1], tile) - mask.shape[-1])).contiguous()


@dataclass(frozen=True)
class AdditiveMask:
    """A mask as a kernel reads it: where (0: there is none), and bytes between sentences, heads and queries."""

    ref: Operand = 0
    batch: int = 0
    heads: int = 0
    queries: int = 0


def masked(b: Builder, mask: Any, form: Callable[[Tensor, int], Tensor | None]) -> AdditiveMask:
    """The mask (batch, heads, queries, keys), broadcast, in the form `key_major` or `query_major`: made at once of a
    constant, else once in every run for all its readers.
    """
    tile = attention_tile(b.level)
    if mask is None:
        return AdditiveMask()
    held: Value | None
    if isinstance(mask, Tensor):
        made = form(mask, tile)
        held = None if made is None else b.value(made)
    else:
        source = mask.original if isinstance(mask, Derived) else mask
        key = (form, source)
        if key not in b.memo:
            for dim in range(3):
                if source.stride[dim] == 0 and source.shape[dim] > 1:
                    source = source.narrowed(dim, 0, 1)
            batch, heads, queries, keys = source.shape
            shape = (batch, keys, ceil_to(queries, tile)) if form is key_major else (
                batch, heads, queries, ceil_to(keys, tile)
            )  # fmt: skip
            made_value = b.outside(shape, torch.float32)
            b.call(TorchCall(form, (source, tile), {}, (b.base(made_value),)))
            b.memo[key] = made_value
        held = b.memo[key]
    if held is None:
        return AdditiveMask()
    steps = [0 if n == 1 else 4 * s for n, s in zip(held.shape, held.stride, strict=True)]
    return AdditiveMask(held.ref, steps[0]) if form is key_major else AdditiveMask(held.ref, *steps[:3])


def hides_the_future(b: Builder, mask: Tensor) -> bool:
    """Whether query t of a mask sees the keys up to t and no others."""
    key = (hides_the_future, id(mask))
    if key not in b.memo:
        seen = mask if mask.dtype is torch.bool else mask == 0
        hidden = mask.dtype is torch.bool or bool(((mask == 0) | (mask == -torch.inf)).all())
        square = torch.ones(mask.shape[-2:], dtype=torch.bool).tril()
        b.memo[key] = mask.dim() == 4 and hidden and bool((seen == square).all())
        b.kept.append(mask)
    found: bool = b.memo[key]
    return found


def _prepare(_: Builder, __: Any, args: tuple[Any, ...], ___: Mapping[str, Any]) -> Any:
    (mask,) = args
    return Derived(mask) if len(mask.shape) == 4 else NotImplemented


def _fits(mask: Any, shape: tuple[int, int, int, int]) -> bool:
    """Whether a mask is absent or of this shape, or of 1 or 2 first dimensions that are broadcast to it."""
    if mask is None:
        return True
    own = tuple((mask.original if isinstance(mask, Derived) else mask).shape)
    return len(own) == 4 and own[2:] == shape[2:] and all(n in (1, m) for n, m in zip(own[:2], shape[:2], strict=True))


def _attention(b: Builder, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    attention: Attention = module
    if kwargs or not all(isinstance(x, Value) and len(x.shape) == 4 for x in args[:3]):
        return NotImplemented
    q, k, v = (x if x.stride[-1] == 1 else b.dense(x) for x in args[:3])
    mask = args[3] if len(args) > 3 else None
    causal = attention.is_causal
    if isinstance(mask, Tensor) and hides_the_future(b, mask):
        mask, causal = None, True
    batch, heads, tokens, width = q.shape
    kept, key_heads = k.shape[2], k.shape[1]
    same = k.shape == v.shape == (batch, key_heads, kept, width) and {q.dtype, k.dtype, v.dtype} == {torch.float32}
    shared = key_heads == heads or (attention.enable_gqa and heads % max(key_heads, 1) == 0)
    if not same or not shared or not q.numel or not kept or (causal and (tokens > kept or mask is not None)):
        return NotImplemented
    if not _fits(mask, (batch, heads, tokens, kept)):
        return NotImplemented
    whole = takes_width(b.level, width) and _fits(mask, (batch, 1, tokens, kept))
    if tokens >= MANY and whole and not causal:  # causal: as a decoder computes it, which takes few tokens at once
        return _in_integers(b, attention.scale, (q, k, v), masked(b, mask, key_major))
    keys, values = (b.new((batch * n,)).ref for n in Cache.sizes(b.level, key_heads, width, kept))
    cache = Cache(keys, values, key_heads, width, kept, attention_tile(b.level))
    b.step(append_step(b.level, k, v, cache, 0))
    return attend(b, attention.scale, q, cache, (0, kept), masked(b, mask, query_major), causal)


def _in_integers(b: Builder, scale: float | None, parts: tuple[Value, Value, Value], mask: AdditiveMask) -> Value:
    """Attention in 16-bit integers; the result lies token by token."""
    q, k, v = (_side_by_side(b, x) for x in parts)
    batch, heads, tokens, width = q.shape
    y = b.new((batch, tokens, heads, width)).permuted((0, 2, 1, 3))
    shape = AttentionShape(batch, tokens, k.shape[2], heads, width, heads // k.shape[1])
    places = [Rows(x.ref, 4 * x.stride[2], 4 * x.stride[0]) for x in (q, k, v, y)]
    b.step(attention16_step(b.level, shape, places, _factor(b, scale, width), mask.ref, mask.batch))
    return y


def _side_by_side(b: Builder, x: Value) -> Value:
    """(batch, heads, tokens, width) with the heads of a token one after the other."""
    if x.shape[1] == 1 or x.stride[1] == x.shape[3]:
        return x
    return b.dense(x.permuted((0, 2, 1, 3))).permuted((0, 2, 1, 3))


def _factor(b: Builder, scale: float | None, width: int) -> Operand:
    return b.keep(torch.tensor(1 / sqrt(width) if scale is None else scale, dtype=torch.float32))


def attend(
    b: Builder,
    scale: float | None,
    q: Value,
    cache: Cache,
    reach: tuple[Operand, int],
    mask: AdditiveMask,
    causal: bool,
) -> Value:
    """Attention of q (batch, heads, tokens, width) over the `reach[0]` + `reach[1]` keys of a cache; the result lies
    token by token.
    """
    batch, heads, tokens, width = q.shape
    y = b.new((batch, tokens, heads, width)).permuted((0, 2, 1, 3))
    factor = _factor(b, scale, width)
    hidden = (mask.ref, mask.batch, mask.heads, mask.queries)
    b.step(attend_step(b.level, q, cache, *reach, hidden, causal, factor, y))
    return y


HANDLERS: Mapping[Any, Handler] = {PreparedMask: _prepare, Attention: _attention}
