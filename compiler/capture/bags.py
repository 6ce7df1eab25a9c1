"""Bags of embeddings as what they are: rows that are looked up, then summed or averaged."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
_BAGS = {aten.embedding_bag.padding_idx, aten.embedding_bag.default}
_MODES = ("sum", "mean")


@dataclass(frozen=True)
class _Bag:
    """The arguments of embedding_bag; `mode` is 0 for sums, 1 for means (2, the maximum, is left alone)."""

    weight: Any
    index: Any
    offsets: Any
    by_frequency: bool = False
    mode: int = 0
    sparse: bool = False
    weights: Any = None
    last: bool = False
    padding: int | None = None


def open_bags(gm: fx.GraphModule) -> None:
    """embedding_bag(W, i, offsets)[0] becomes embedding(W, i) and a sum or a mean, in place: values stay the same up
    to the order of the sums.

    Rows of a matrix i are bags of equal length. Rows that are left out (`padding`) have the weight 0; a mean counts the
    others.
    """
    for node in list(gm.graph.nodes):
        if node.target not in _BAGS or any(u.target is not operator.getitem or u.args[1] != 0 for u in node.users):
            continue
        bag = _Bag(*node.args, **node.kwargs)
        if bag.mode > 1:
            continue
        with gm.graph.inserting_before(node):
            pooled = _pooled(_Calls(gm.graph, node), bag)
        for use in list(node.users):
            use.replace_all_uses_with(pooled)
            gm.graph.erase_node(use)
        gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()
    gm.recompile()


class _Calls:
    """Calls with the metadata of the node that they stand for."""

    def __init__(self, graph: fx.Graph, origin: fx.Node) -> None:
        self.graph, self.origin = graph, origin

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        value, values = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        return self.known(target(*value, **values), target, *args, **kwargs)

    def known(self, value: Any, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call that gives something like `value`: operators that look at sizes would fix them."""
        node = self.graph.call_function(target, args, kwargs)
        node.meta = {**self.origin.meta, "val": value}
        return node


def _pooled(call: _Calls, bag: _Bag) -> fx.Node:
    matrix = _matrix(bag)
    index, weights = bag.index if matrix is None else matrix, bag.weights
    if matrix is not None and weights is not None:
        weights = call(aten.reshape.default, weights, [call(aten.sym_size.int, index, d) for d in (0, 1)])
    if bag.padding is not None and bag.padding >= 0:
        used = call(aten.to.dtype, call(aten.ne.Scalar, index, bag.padding), torch.float32)
        weights = used if weights is None else call(aten.mul.Tensor, weights, used)
    rows = call(
        aten.embedding.default, bag.weight, index, bag.padding if bag.padding is not None else -1, bag.by_frequency,
        bag.sparse,
    )  # fmt: skip
    if weights is not None:
        rows = call(aten.mul.Tensor, rows, call(aten.unsqueeze.default, weights, -1))
    mode = _MODES[bag.mode]
    pool = _over_rows(call) if matrix is not None else _over_segments(call, bag)
    if weights is None or mode == "sum":
        return pool(rows, mode)
    count = call(aten.clamp.default, call(aten.unsqueeze.default, pool(weights, "sum"), -1), 1)
    return call(aten.div.Tensor, pool(rows, "sum"), count)


def _matrix(bag: _Bag) -> fx.Node | None:
    """The matrix of indices whose rows are the bags: the index is that matrix made flat, the offsets count its rows'
    ends."""
    flat, steps = bag.index, bag.offsets
    if flat.target is not aten.reshape.default or flat.args[1] != [-1] or steps.target is not aten.arange.start_step:
        return None
    index, (start, end, step) = flat.args[0], steps.args
    width = isinstance(step, fx.Node) and step.target is aten.sym_size.int and step.args == (index, 1)
    whole = isinstance(end, fx.Node) and end.target is aten.sym_numel.default and end.args == (index,)
    if not isinstance(index, fx.Node) or len(index.meta["val"].shape) != 2 or start != 0:
        return None
    shape = index.meta["val"].shape
    return index if (width or step == shape[1]) and (whole or end == shape.numel()) and not bag.last else None


def _over_rows(call: _Calls) -> Callable[[fx.Node, str], fx.Node]:
    return lambda x, mode: call(aten.mean.dim if mode == "mean" else aten.sum.dim_IntList, x, [1])


def _over_segments(call: _Calls, bag: _Bag) -> Callable[[fx.Node, str], fx.Node]:
    """Bag n is index[starts[n] : starts[n + 1]]; an empty one gives 0."""
    starts = bag.offsets
    if not bag.last:
        size = call(aten.sym_size.int, bag.index, 0)
        like = {"dtype": starts.meta["val"].dtype, "device": starts.meta["val"].device}
        # One number in a tensor, without a value that would be fixed.
        one = starts.meta["val"].new_empty((1,))
        end = call.known(one, aten.arange.start, size, call(operator.add, size, 1), **like)
        starts = call(aten.cat.default, [starts, end])
    options = {"offsets": starts, "axis": 0, "unsafe": True, "initial": 0}
    bags = starts.meta["val"].shape[0] - 1

    def pool(x: fx.Node, mode: str) -> fx.Node:
        value = x.meta["val"].new_empty((bags, *x.meta["val"].shape[1:]))
        return call.known(value, aten.segment_reduce.default, x, mode, **options)

    return pool
