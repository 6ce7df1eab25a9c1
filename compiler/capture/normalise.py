"""Remove from an exported graph what says nothing, and write what remains in one way.

* checks of dtype and device, conversions to what a tensor already is, slices that keep all, detach, and contiguous
where
  a view follows, which copies where it must; elsewhere the order in memory decides how sums round;
* every view is a reshape, since rewritten producers may have other strides; unflatten too;
* attention has its scale written out, so that later changes of the head width do not change it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

_CHECKS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}
_CONVERSIONS = {aten.to.dtype, aten.to.device, aten.to.dtype_layout}
_SAME = {aten.detach.default, aten.alias.default}
_VIEWS = {aten.view.default, aten._unsafe_view.default}
_END = 2**63 - 1
KEEP_META = frozenset({"val", "nn_module_stack"})


def normalise(gm: fx.GraphModule) -> None:
    """In place; values and random numbers drawn stay the same."""
    graph = gm.graph
    for node in list(graph.nodes):
        node.meta = {key: value for key, value in node.meta.items() if key in KEEP_META}
        if node.target in _CHECKS or (node.op == "call_module" and node.target == "_guards_fn"):
            graph.erase_node(node)
        elif node.op == "call_function":
            _simplify(graph, node)
    graph.eliminate_dead_code()
    gm.recompile()


def _simplify(graph: fx.Graph, node: fx.Node) -> None:
    source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    before = source.meta.get("val") if source is not None else None
    if source is None or not isinstance(before, Tensor):
        return
    value = node.meta["val"]
    same = node.target in _SAME or (node.target in _CONVERSIONS and _same_type(value, before))
    if same or _whole_slice(node) or _only_viewed(node):
        _bypass(graph, node, source)
    elif node.target in _CONVERSIONS and node.target is not aten.to.dtype and value.device == before.device:
        node.target, node.args, node.kwargs = aten.to.dtype, (source, value.dtype), {}
    elif node.target in _VIEWS:
        node.target = aten.reshape.default
    elif node.target is aten.unflatten.int:
        _unflatten_to_reshape(graph, node, source, before)
    elif node.target is aten.scaled_dot_product_attention.default:
        width = before.shape[-1]
        if node.kwargs.get("scale") is None and isinstance(width, int):
            node.kwargs = {**node.kwargs, "scale": width**-0.5}


def _same_type(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and a.layout == b.layout


def _whole_slice(node: fx.Node) -> bool:
    if node.target is not aten.slice.Tensor:
        return False
    bounds: tuple[Any, ...] = node.args[2:]
    return bounds in ((), (None,), (0,), (None, None), (0, None), (None, _END), (0, _END))


def _only_viewed(node: fx.Node) -> bool:
    views = _VIEWS | {aten.reshape.default}
    return node.target is aten.contiguous.default and all(user.target in views for user in node.users)


def _bypass(graph: fx.Graph, node: fx.Node, source: fx.Node) -> None:
    node.replace_all_uses_with(source)
    graph.erase_node(node)


def _unflatten_to_reshape(graph: fx.Graph, node: fx.Node, source: fx.Node, before: Tensor) -> None:
    where: Any = node.args[1]
    sizes: Any = node.args[2]
    shape: list[Any] = []
    dims: Any = before.shape
    for dim, size in enumerate(dims):
        if dim == where % before.dim():
            shape += list(sizes)
        elif isinstance(size, int):
            shape.append(size)
        else:
            with graph.inserting_before(node):
                symbol = graph.call_function(aten.sym_size.int, (source, dim))
            symbol.meta["val"] = size
            shape.append(symbol)
    node.target, node.args, node.kwargs = aten.reshape.default, (source, shape), {}
