"""Roles of normalisations, from who made their input and who reads their result."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from tersor.compiler.roles import Role
from tersor.compiler.roles.annotate import Annotated, aten
from tersor.compiler.roles.walk import linears_above, linears_below

_MIXING = ("linear", "attention", "recurrent")


def norm_roles(a: Annotated, known: Mapping[fx.Node, Role]) -> dict[fx.Node, Role]:
    """A norm before a block (its input goes on as the residual) is named after the block that reads it; a norm after
    a block after the block whose sum it takes."""
    return {node: _role(a, node, known) for node in a.of_kind("norm")}


def _role(a: Annotated, node: fx.Node, known: Mapping[fx.Node, Role]) -> Role:
    x = a.parts[node].inputs[0]
    makers = [known[n].name for n in linears_above(a, x) if n in known]
    readers = [known[n].name for n in linears_below(a, node, ("shape", "pointwise")) if n in known]
    if any(m.endswith((".query", ".key", ".qkv")) for m in makers) and not readers:
        return Role("norm.qk", ("stands between a projection and its attention",))
    if _goes_on(a, node):
        for reader in readers:
            prefix = reader.split(".")[0]
            if prefix in ("attention", "cross_attention", "ffn"):
                return Role(f"norm.{prefix}", (f"read by {reader}", "its input goes on as the residual"))
        return Role("norm.final", ("read by no block", "its input goes on as the residual"))
    above = a.above(node)
    if not any(a.kind(n) in _MIXING for n in above) and any(a.kind(n) == "embedding" for n in above):
        return Role("norm.embedding", ("directly after the embeddings",))
    if any(a.kind(n) == "norm" and _goes_on(a, n) for n in above):
        return Role("norm.final", ("the last of norms that stand before blocks",))
    maker = makers[-1] if makers else ""
    for block in ("cross_attention", "attention", "ffn", "head"):
        if maker.startswith(block + "."):
            return Role(f"norm.{block}", (f"takes the result of {maker}",))
    return Role("norm.other", ("no block found around it",))


def _goes_on(a: Annotated, node: fx.Node) -> bool:
    """Whether the norm's input is also added to something: it is the residual stream."""
    pending = [(a.parts[node].inputs[0], 3)]
    while pending:
        x, depth = pending.pop()
        for user in x.users:
            if user is not node and user.target is aten.add.Tensor:
                return True
            if user.target in (aten.to.dtype, aten.dropout.default) and depth:
                pending.append((user, depth - 1))
    return False
