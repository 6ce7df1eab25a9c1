"""Walks along an annotated graph through operators that do not mix features."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from torch import Tensor, fx

from tersor.compiler.roles.annotate import BLOCKS, Annotated, aten, tensor_inputs

LIGHT = frozenset({"shape", "pointwise", "activation"})


def reached(start: Iterable[fx.Node], further: Callable[[fx.Node], Iterable[fx.Node]]) -> Iterator[fx.Node]:
    """Every node that is reached from `start`, once; `further` says where the walk goes on from a node."""
    pending, seen = list(start), set()
    while pending:
        n = pending.pop()
        if n not in seen:
            seen.add(n)
            yield n
            pending += further(n)


def blocks_above(a: Annotated, node: fx.Node, through: Collection[str] = ()) -> list[fx.Node]:
    """The nearest blocks from which `node` is made by light operators only, in execution order; `through` are kinds of
    blocks to look through (`norm`)."""

    def further(n: fx.Node) -> Iterable[fx.Node]:
        if a.kind(n) in through:
            return a.parts[n].inputs[:1]
        return () if a.kind(n) in BLOCKS else tensor_inputs(n)

    ends = [n for n in reached([node], further) if a.kind(n) in BLOCKS and a.kind(n) not in through]
    return sorted(ends, key=a.order.__getitem__)


def linears_above(a: Annotated, node: fx.Node, through: Collection[str] = ()) -> list[fx.Node]:
    return [n for n in blocks_above(a, node, through) if a.kind(n) == "linear"]


def linears_below(a: Annotated, node: fx.Node, light: Collection[str] = LIGHT) -> list[fx.Node]:
    """The first linears reached through light operators, in execution order."""
    ends = reached(node.users, lambda n: n.users if a.kind(n) in light and a.kind(n) != "linear" else ())
    return sorted((n for n in ends if a.kind(n) == "linear"), key=a.order.__getitem__)


def stream(a: Annotated, node: fx.Node) -> fx.Node:
    """The tensor a block's input comes from, before norms, views and dropout."""
    while a.kind(node) in ("norm", "shape") or node.target is aten.dropout.default:
        node = a.parts[node].inputs[0] if a.kind(node) == "norm" else tensor_inputs(node)[0]
    return node


def unshaped(a: Annotated, node: fx.Node) -> fx.Node:
    """The tensor before views."""
    while a.kind(node) == "shape":
        node = tensor_inputs(node)[0]
    return node


def residual_add(a: Annotated, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The addition that takes a block's result into the stream, and its other operand."""
    for _ in range(8):
        users = [u for u in node.users if u.op == "call_function"]
        for user in users:
            operands = [
                n
                for n in user.args
                if isinstance(n, fx.Node) and isinstance(n.meta.get("val"), Tensor) and n.op != "get_attr"
            ]
            if user.target is aten.add.Tensor and len(operands) == 2:
                return user, operands[1] if operands[0] is node else operands[0]
        if len(users) != 1 or not (
            a.kind(users[0]) == "shape" or users[0].target in (aten.dropout.default, aten.mul.Scalar)
        ):
            return None
        node = users[0]
    return None
