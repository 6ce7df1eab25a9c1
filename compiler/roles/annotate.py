"""What each ATen node is: linear, embedding, norm, attention, activation, ... Attention and RMSNorm written out in
small operators are recognised too and stand at their last node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tersor.compiler.graph import matrix, parameter

aten = torch.ops.aten

SHAPE = {
    aten.reshape.default, aten.transpose.int, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.squeeze.default, aten.select.int, aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default,
    aten.chunk.default, aten.expand.default, aten.clone.default, aten.cat.default, aten.flatten.using_ints,
    aten.repeat_interleave.self_int, aten.t.default, aten.index.Tensor, aten.to.dtype, aten.stack.default,
    aten.unbind.int, aten.mean.dim, aten.contiguous.default,
}  # fmt: skip
ACTIVATION = {
    aten.gelu.default, aten.relu.default, aten.silu.default, aten.tanh.default, aten.erf.default, aten.sigmoid.default,
    aten.relu_.default, aten.mish.default, aten.leaky_relu.default, aten.softplus.default,
}  # fmt: skip
POINTWISE = {
    aten.mul.Tensor, aten.add.Tensor, aten.div.Tensor, aten.sub.Tensor, aten.neg.default, aten.pow.Tensor_Scalar,
    aten.dropout.default, aten.mul.Scalar, aten.add.Scalar, aten.div.Scalar, aten.rsub.Scalar, aten.clamp.default,
}  # fmt: skip
PRODUCTS = {aten.matmul.default, aten.bmm.default, aten.baddbmm.default}
RECURRENT = {aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input}
BLOCKS = frozenset({"linear", "embedding", "norm", "attention", "recurrent"})


@dataclass(frozen=True)
class Part:
    """The kind of a node; for the blocks also what it reads: `inputs` is (x,) or (q, k, v), `weight` the operand that
    holds the parameter, `mask` what is added to or selects among attention scores."""

    kind: str
    inputs: tuple[fx.Node, ...] = ()
    weight: fx.Node | None = None
    mask: fx.Node | None = None


class Annotated:
    """A raw graph with the part each node is, and who depends on whom."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.nodes: list[fx.Node] = list(gm.graph.nodes)
        self.order = {node: i for i, node in enumerate(self.nodes)}
        self.parts = {node: _part(gm, node) for node in self.nodes}
        self._above: dict[fx.Node, int] = {}
        for node in self.nodes:
            bits = 0
            for source in node.all_input_nodes:
                bits |= self._above[source] | 1 << self.order[source]
            self._above[node] = bits
        for node, part in [*_written_out_attention(self), *_written_out_norms(self)]:
            self.parts[node] = part

    def kind(self, node: fx.Node) -> str:
        return self.parts[node].kind

    def of_kind(self, kind: str) -> list[fx.Node]:
        return [node for node in self.nodes if self.parts[node].kind == kind]

    def depends(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether `source` is above `node`."""
        return bool(self._above[node] >> self.order[source] & 1)

    def above(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in self.nodes[: self.order[node]] if self.depends(node, n)]

    def below(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in self.nodes[self.order[node] + 1 :] if self.depends(n, node)]


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """The operands that are tensors (not sizes)."""
    inputs = node.all_input_nodes
    return [n for n in inputs if n.op == "get_attr" or isinstance(n.meta.get("val"), Tensor | list | tuple)]


def _part(gm: fx.GraphModule, node: fx.Node) -> Part:
    if node.op != "call_function":
        return Part(node.op)
    target: Any = node.target
    nodes: Any = node.args
    if target is aten.linear.default:
        return Part("linear", (nodes[0],), nodes[1])
    if target is aten.addmm.default and matrix(gm, nodes[2]):
        return Part("linear", (nodes[1],), nodes[2])
    if target in (aten.matmul.default, aten.mm.default) and matrix(gm, nodes[1]):
        return Part("linear", (nodes[0],), nodes[1])
    if target is aten.embedding.default:
        return Part("embedding", (nodes[1],), nodes[0])
    if target in (aten.layer_norm.default, aten.rms_norm.default):
        return Part("norm", (nodes[0],), nodes[2] if len(nodes) > 2 else None)
    if target in RECURRENT:
        return Part("recurrent", (nodes[0],))
    if target is aten.scaled_dot_product_attention.default:
        mask: Any = nodes[3] if len(nodes) > 3 else node.kwargs.get("attn_mask")
        return Part("attention", nodes[:3], mask=mask)
    for kind, targets in (("shape", SHAPE), ("activation", ACTIVATION), ("pointwise", POINTWISE)):
        if target in targets or (kind == "shape" and getattr(target, "__name__", "") == "getitem"):
            return Part(kind)
    return Part("other")


def _written_out_attention(a: Annotated) -> Iterator[tuple[fx.Node, Part]]:
    """matmul(q, k^T) -> scale, mask -> softmax -> dropout -> matmul(., v)."""
    for node in a.nodes:
        if node.target not in (aten.softmax.int, aten._softmax.default):
            continue
        scores, mask = _scores(a, node)
        out = _only_user_until(node, PRODUCTS)
        if scores is None or out is None or a.kind(out) == "linear":
            continue
        first = 1 if scores.target is aten.baddbmm.default else 0
        queries_keys: Any = scores.args[first : first + 2]
        values: Any = out.args[1]
        yield out, Part("attention", (*queries_keys, values), mask=mask)


def _scores(a: Annotated, softmax: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The product q k^T above a softmax, and the last operand met beside it: the mask or bias."""
    node: Any = softmax.args[0]
    mask: fx.Node | None = None
    while node.op == "call_function":
        if node.target in PRODUCTS and a.kind(node) != "linear":
            return node, mask
        beside = tensor_inputs(node)
        along = [n for n in beside if _leads_to_product(a, n)]
        if len(along) != 1:
            break
        mask = next((n for n in beside if n is not along[0]), mask)
        node = along[0]
    return None, None


def _leads_to_product(a: Annotated, node: fx.Node, depth: int = 6) -> bool:
    if node.op != "call_function" or depth == 0 or a.kind(node) in BLOCKS:
        return False
    return node.target in PRODUCTS or any(_leads_to_product(a, n, depth - 1) for n in tensor_inputs(node))


def _only_user_until(node: fx.Node, targets: set[Any]) -> fx.Node | None:
    while True:
        users = [u for u in node.users if u.op == "call_function"]
        if len(users) != 1:
            return None
        node = users[0]
        if node.target in targets:
            return node


def _written_out_norms(a: Annotated) -> Iterator[tuple[fx.Node, Part]]:
    """w * (x * rsqrt(mean(x^2) + eps)), with casts between."""
    for node in a.nodes:
        if node.target is not aten.rsqrt.default:
            continue
        square: Any = node.args[0]
        while square.op == "call_function" and square.target in (aten.add.Tensor, aten.mean.dim, aten.to.dtype):
            square = square.args[0]
        if square.target is not aten.pow.Tensor_Scalar:
            continue
        x = square.args[0]
        while x.target is aten.to.dtype:
            x = x.args[0]
        last, weight = _scaled(a.gm, node)
        if weight is not None:
            yield last, Part("norm", (x,), weight)


def _scaled(gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """Follow rsqrt to the product with the weight."""
    for _ in range(4):
        for user in node.users:
            weight = next((n for n in user.all_input_nodes if parameter(gm, n) is not None), None)
            if user.target is aten.mul.Tensor and weight is not None:
                return user, weight
        users = list(node.users)
        if len(users) != 1 or users[0].target not in (aten.mul.Tensor, aten.to.dtype):
            break
        node = users[0]
    return node, None
