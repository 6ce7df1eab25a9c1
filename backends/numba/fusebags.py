"""Sums and means of looked-up rows are taken where the rows are read. All change a graph module in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tersor.backends.numba.bags import SummedEmbedding, trusted_bags
from tersor.backends.numba.gather import GatheredEmbedding

aten = torch.ops.aten


def fuse_bags(module: fx.GraphModule) -> None:
    """sum, mean or segment_reduce that alone reads an embedding, or an embedding times one weight per row, becomes one
    call.
    """
    for node in list(module.graph.find_nodes(op="call_module")):
        leaf = module.get_submodule(str(node.target))
        if not isinstance(leaf, GatheredEmbedding) or not trusted_bags(leaf):
            continue
        rows, weights = _weighted(node)
        pool = _sole_user(rows)
        found = None if pool is None else _pooling(pool, rows)
        if pool is None or found is None or (found[0] and weights is not None):
            continue
        mean, dim, starts = found
        path = _new_path(module, str(node.target), "mean" if mean else "sum")
        module.add_submodule(path, SummedEmbedding(leaf, mean, dim))
        with module.graph.inserting_before(pool):
            given = None if weights is None else _per_row(module.graph, weights)
            arguments = [node.args[0], given, starts]
            while arguments[-1] is None:
                arguments.pop()
            pool.replace_all_uses_with(module.graph.call_module(path, tuple(arguments)))
        module.graph.erase_node(pool)
        if rows is not node:
            module.graph.erase_node(rows)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()


def _sole_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _weighted(node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The rows, or their product with weights that do not differ along a row, and these."""
    user = _sole_user(node)
    if user is None or user.target is not aten.mul.Tensor:
        return node, None
    others = [a for a in user.args if a is not node]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or _unsqueezed(others[0]) is None:
        return node, None
    return user, others[0]


def _unsqueezed(node: fx.Node) -> fx.Node | None:
    """The unsqueeze(x, -1) that a node is, expanded or converted."""
    while node.target in (aten.expand.default, aten.to.dtype):
        source: Any = node.args[0]
        node = source
    return node if node.target is aten.unsqueeze.default and node.args[1] == -1 else None


def _per_row(graph: fx.Graph, node: fx.Node) -> Any:
    """x of the unsqueeze(x, -1) that a node is, converted as the node."""
    source: Any = node.args[0]
    if node.target is aten.unsqueeze.default:
        return source
    inner = _per_row(graph, source)
    return inner if node.target is aten.expand.default else graph.call_function(aten.to.dtype, (inner, node.args[1]))


def _pooling(node: fx.Node, rows: fx.Node) -> tuple[bool, int, fx.Node | None] | None:
    """(mean, dimension, starts) of a node that sums over one dimension of `rows`, None for another."""
    args: Any = node.args
    if node.target in (aten.mean.dim, aten.sum.dim_IntList) and len(args) == 2 and not node.kwargs:
        dims = args[1]
        return (node.target is aten.mean.dim, dims[0], None) if dims is not None and len(dims) == 1 else None
    if node.target is aten.segment_reduce.default and args[0] is rows and args[1] in ("sum", "mean"):
        given = {name: value for name, value in node.kwargs.items() if value is not None}
        starts = given.pop("offsets", None)
        plain = given.pop("axis", 0) == 0 and given.pop("initial", None) == 0
        given.pop("unsafe", None)
        return (args[1] == "mean", 0, starts) if plain and not given and isinstance(starts, fx.Node) else None
    return None


def _new_path(module: fx.GraphModule, path: str, name: str) -> str:
    taken = {p for p, _ in module.named_modules(remove_duplicate=False)}
    wanted, number = f"{path}_{name}", 1
    while wanted in taken:
        number += 1
        wanted = f"{path}_{name}{number}"
    return wanted
