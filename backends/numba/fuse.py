"""Graph clean-ups around the kernels. All change a graph module in place."""

from __future__ import annotations

import operator
from collections import defaultdict
from typing import Any, Protocol, runtime_checkable

import torch
from torch import fx, nn

from tersor.backends.numba.elementwise import Activation
from tersor.backends.numba.inturn import InTurn
from tersor.backends.numba.linear import QuantizedLinear
from tersor.backends.numba.norm import AddLayerNorm, SumNorm, parameters

aten = torch.ops.aten


def _leaf(module: fx.GraphModule, node: Any) -> nn.Module | None:
    if isinstance(node, fx.Node) and node.op == "call_module":
        return module.get_submodule(str(node.target))
    return None


def drop_dropout(module: fx.GraphModule) -> None:
    """Dropout is the identity in inference."""
    for node in module.graph.find_nodes(op="call_module"):
        if isinstance(_leaf(module, node), nn.Dropout):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def split_chains(module: fx.GraphModule) -> None:
    """A product of factors becomes two calls, so that what follows or stands beside it can join."""
    for node in module.graph.find_nodes(op="call_module"):
        if isinstance(_leaf(module, node), InTurn):
            path = str(node.target)
            with module.graph.inserting_before(node):
                first = module.graph.call_module(f"{path}.first", node.args, node.kwargs)
                node.replace_all_uses_with(module.graph.call_module(f"{path}.second", (first,)))
            module.graph.erase_node(node)


def _activation(module: fx.GraphModule, node: fx.Node) -> Activation | None:
    """The activation a node computes, if the kernels have it."""
    leaf = _leaf(module, node)
    if isinstance(leaf, nn.GELU):
        return "gelu" if leaf.approximate == "none" else "gelu_tanh"
    if isinstance(leaf, nn.ReLU | nn.SiLU):
        return "relu" if isinstance(leaf, nn.ReLU) else "silu"
    if node.target is aten.gelu.default:
        return "gelu" if node.kwargs.get("approximate", "none") == "none" else "gelu_tanh"
    if node.target is aten.relu.default:
        return "relu"
    return "silu" if node.target is aten.silu.default else None


@runtime_checkable
class Activating(Protocol):
    """A linear that can take an activation after it."""

    activation: Activation

    def with_activation(self, activation: Activation) -> nn.Module | None: ...


def fuse_activations(module: fx.GraphModule, single: set[str]) -> None:
    """An activation that alone reads a linear becomes part of it. `single` are the paths that are called once."""
    for node in module.graph.find_nodes(op="call_module"):
        linear = _leaf(module, node)
        if not isinstance(linear, Activating) or len(node.users) != 1 or str(node.target) not in single:
            continue
        (user,) = node.users
        activation = _activation(module, user)
        if activation is None or linear.activation != "none":
            continue
        fused = linear.with_activation(activation)
        if fused is None:
            continue
        module.set_submodule(str(node.target), fused)
        user.replace_all_uses_with(node)
        module.graph.erase_node(user)


def merge_linears(module: fx.GraphModule, single: set[str]) -> None:
    """Linears of one layout that read the same value become one, whose output is split."""
    readers: dict[tuple[Any, ...], list[fx.Node]] = defaultdict(list)
    for node in module.graph.find_nodes(op="call_module"):
        linear = _leaf(module, node)
        if isinstance(linear, QuantizedLinear) and str(node.target) in single and len(node.args) == 1:
            readers[(node.args[0], *linear.merge_key())].append(node)
    for nodes in readers.values():
        if len(nodes) > 1:
            _merge(module, nodes)


def _merge(module: fx.GraphModule, nodes: list[fx.Node]) -> None:
    linears = [leaf for node in nodes if isinstance(leaf := _leaf(module, node), QuantizedLinear)]
    merged = QuantizedLinear.joined(linears)
    if merged is None:
        return
    paths = [str(node.target) for node in nodes]
    parent = paths[0].rpartition(".")[0]
    name = "_".join(path.rpartition(".")[2] for path in paths)
    path = f"{parent}.{name}" if parent else name
    module.add_submodule(path, merged)
    with module.graph.inserting_before(nodes[0]):
        whole = module.graph.call_module(path, (nodes[0].args[0],))
        sizes = [linear.layout.rows for linear in linears]
        parts = module.graph.call_function(aten.split_with_sizes.default, (whole, sizes, -1))
        for i, node in enumerate(nodes):
            node.replace_all_uses_with(module.graph.call_function(operator.getitem, (parts, i)))
    for node, old in zip(nodes, paths, strict=True):
        module.graph.erase_node(node)
        module.delete_submodule(old)


def fuse_norms(module: fx.GraphModule, level: str) -> None:
    """A layer normalisation that alone reads a sum of two tensors, at every call, takes the addition over."""
    calls: dict[str, list[fx.Node]] = defaultdict(list)
    for node in module.graph.find_nodes(op="call_module"):
        calls[str(node.target)].append(node)
    for path, nodes in calls.items():
        norm = module.get_submodule(path)
        if not isinstance(norm, nn.LayerNorm) or parameters(norm) is None:
            continue
        if not all(_reads_sum(node) and len(node.args[0].users) == 1 for node in nodes):  # type: ignore[union-attr]
            continue
        module.set_submodule(path, AddLayerNorm(norm, level))
        for node in nodes:
            total: Any = node.args[0]
            node.args = total.args
            module.graph.erase_node(total)


def fuse_sums(module: fx.GraphModule) -> None:
    """A normalisation of a sum that others read too takes the addition over, and gives the sum as well."""
    for i, node in enumerate(module.graph.find_nodes(op="call_module")):
        norm = module.get_submodule(str(node.target))
        if parameters(norm) is None or not _reads_sum(node):
            continue
        total: Any = node.args[0]
        module.add_submodule(f"sum_norm_{i}", SumNorm(norm))
        with module.graph.inserting_before(total):
            both = module.graph.call_module(f"sum_norm_{i}", total.args)
            parts = [module.graph.call_function(operator.getitem, (both, part)) for part in (0, 1)]
        for old, new in zip((total, node), parts, strict=True):
            old.replace_all_uses_with(new)
        module.graph.erase_node(node)
        module.graph.erase_node(total)


def _reads_sum(node: fx.Node) -> bool:
    """Whether all that a call reads is a sum of two tensors."""
    total = node.args[0]
    if not isinstance(total, fx.Node) or total.target is not aten.add.Tensor:
        return False
    return not total.kwargs and all(isinstance(term, fx.Node) for term in total.args)
