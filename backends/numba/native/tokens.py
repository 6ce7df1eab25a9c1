"""Which dimension of a tensor counts the tokens, and what a decoder may do with it.

A graph is walked for two numbers of tokens at once: the dimension in which a result differs is that of its tokens. What
has no tokens at all depends on positions only; it is computed for two capacities, and read at the positions in turn.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tersor.backends.numba.gather import GatheredEmbedding
from tersor.backends.numba.native.builder import Builder
from tersor.backends.numba.native.lower import decoders, elementwise, forms, layers, views
from tersor.backends.numba.native.values import Derived, Value, contiguous
from tersor.compiler.compressed import CompressedEmbedding, CompressedLinear
from tersor.compiler.errors import RequestError

aten = torch.ops.aten

_MODULES = (
    nn.Linear, nn.Embedding, nn.LayerNorm, nn.GELU, nn.Dropout, nn.Identity, CompressedLinear, CompressedEmbedding,
    GatheredEmbedding,
)  # fmt: skip
_POINTWISE: Mapping[Any, Any] = {
    **layers.HANDLERS, **forms.HANDLERS, **decoders.HANDLERS, **elementwise.HANDLERS,
    aten.pow.Tensor_Scalar: None, aten.gelu.default: None, aten.clamp.default: None,
}  # fmt: skip
_LAST = (aten.mean.dim, aten.softmax.int, aten.sum.dim_IntList)
_VIEWS = {*views.HANDLERS, aten.cat.default, aten.contiguous.default, aten.clone.default, aten.squeeze.dim}
_RESHAPES = (aten.reshape.default, aten.view.default)


def refuse(node: fx.Node, why: str) -> RequestError:
    return RequestError(f"the model cannot generate with a cache: `{node.name}` ({node.target}) {why}")


def leaves(found: Any) -> list[Value]:
    parts = pytree.tree_leaves(found)
    return [x.original if isinstance(x, Derived) else x for x in parts if isinstance(x, Value | Derived)]


def token_dim(one: Value, other: Value) -> int | None:
    """The one dimension that differs between the two numbers of tokens."""
    dims = [i for i, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if a != b]
    return dims[0] if len(dims) == 1 and len(one.shape) == len(other.shape) else None


def check_tokens(node: fx.Node, target: Any, args: tuple[Any, Any], results: tuple[Any, Any]) -> None:
    """RequestError unless an operator or module treats every token alike and keeps their order. `args` and `results`
    are those for the two numbers of tokens.
    """
    pointwise = type(target) in _POINTWISE or isinstance(target, _MODULES)
    pointwise = pointwise or (not isinstance(target, nn.Module) and target in _POINTWISE)
    last = not isinstance(target, nn.Module) and target in _LAST
    if not (pointwise or last or type(target) in _VIEWS or target in _VIEWS):
        raise refuse(node, "is not known to treat every token alike")
    inputs = [(x, token_dim(x, y)) for x, y in zip(leaves(args[0]), leaves(args[1]), strict=True)]
    outputs = [(x, token_dim(x, y)) for x, y in zip(leaves(results[0]), leaves(results[1]), strict=True)]
    if any(dim is None for _, dim in outputs):
        raise refuse(node, "does not keep one dimension of tokens")
    source, dim = next(((x, d) for x, d in inputs if d is not None), (None, None))
    if source is None or dim is None or pointwise:
        return
    for x, d in outputs:
        if d is None or target is operator.getitem:
            continue
        if target in _RESHAPES:
            kept = prod(x.shape[d + 1 :]) == prod(source.shape[dim + 1 :])
        else:
            kept = x.shape[d] == source.shape[dim]
        if not kept or (last and dim == len(source.shape) - 1):
            raise refuse(node, "mixes tokens")


def at_offset(b: Builder, node: fx.Node, pair: tuple[Any, Any], tokens: int, capacity: int) -> Any:
    """What depends on positions only, for `tokens` of them from the offset of the run on. `pair` is it for `capacity`
    tokens and for one less; more than one dimension of tokens is given as it is, for whoever knows what to do with it.
    """
    whole, less = pair
    if not isinstance(whole, Tensor):
        return whole
    dims = [i for i, (a, c) in enumerate(zip(whole.shape, less.shape, strict=True)) if a != c]
    if any((whole.shape[i], less.shape[i]) != (capacity, capacity - 1) for i in dims):
        raise refuse(node, "has a size that is not the number of tokens")
    part = whole
    for i in dims:
        part = part.narrow(i, 0, capacity - 1)
    if not torch.equal(part, less):
        raise refuse(node, "depends on how many tokens there are, not only on their positions")
    if len(dims) != 1:
        return whole
    held = whole.contiguous()
    b.kept.append(held)
    stride = contiguous(tuple(held.shape))
    buffer = b.moving(held.data_ptr(), stride[dims[0]] * held.dtype.itemsize)
    shape = tuple(tokens if i == dims[0] else n for i, n in enumerate(held.shape))
    return Value(buffer, shape, stride, dtype=held.dtype)
