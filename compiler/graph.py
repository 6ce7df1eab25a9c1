"""Small questions about ATen graphs, asked in several places."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

aten = torch.ops.aten


def attribute(module: nn.Module, target: Any) -> Any:
    """What a get_attr target stands for."""
    value: Any = module
    for part in str(target).split("."):
        value = getattr(value, part)
    return value


def parameter(gm: fx.GraphModule, node: Any) -> nn.Parameter | None:
    """The parameter a node reads, or None."""
    if not (isinstance(node, fx.Node) and node.op == "get_attr"):
        return None
    value = attribute(gm, node.target)
    return value if isinstance(value, nn.Parameter) else None


def matrix(gm: fx.GraphModule, node: Any) -> tuple[nn.Parameter, bool] | None:
    """The matrix parameter behind a node and whether the node is its transpose."""
    transposed = False
    while isinstance(node, fx.Node) and node.op == "call_function":
        if not is_transpose(node):
            return None
        transposed = not transposed
        node = node.args[0]
    found = parameter(gm, node)
    return None if found is None or found.dim() != 2 else (found, transposed)


def is_transpose(node: fx.Node) -> bool:
    """Whether a node exchanges the two dimensions of a matrix."""
    args: Any = node.args
    if node.target in (aten.t.default, aten.numpy_T.default, aten.mT.default):
        return True
    if node.target is aten.transpose.int:
        return {a % 2 for a in args[1:3]} == {0, 1}
    return node.target is aten.permute.default and list(args[1]) == [1, 0]


def same_shape(a: Any, b: Any) -> bool:
    """Whether two shapes are equal for every value of their symbols."""
    return len(a) == len(b) and all(same_size(x, y) for x, y in zip(a, b, strict=True))


def same_size(a: Any, b: Any) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return bool(a.node.expr == b.node.expr)
