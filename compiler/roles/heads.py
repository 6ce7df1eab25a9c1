"""Roles of the linears that belong to no block: heads and projections of embeddings."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from tersor.compiler.roles import Role
from tersor.compiler.roles.annotate import Annotated, aten
from tersor.compiler.roles.walk import linears_below

_POOLING = {aten.select.int, aten.slice.Tensor, aten.mean.dim, aten.index.Tensor, aten.max.dim, aten.amax.default}


def head_roles(a: Annotated, known: Mapping[fx.Node, Role]) -> dict[fx.Node, Role]:
    """lm_head: as wide as a token table and nothing after; pooler: reads a selection of positions and is activated;
    classifier: nothing after; everything else between is head.dense."""
    tables = [n for n, role in known.items() if role.name == "embedding.token"]
    vocabularies = {int(w.meta["val"].shape[0]) for n in tables if (w := a.parts[n].weight) is not None}
    roles: dict[fx.Node, Role] = {}
    for node in a.of_kind("linear"):
        if node in known:
            continue
        below = a.below(node)
        mixed = any(a.kind(n) in ("linear", "attention", "recurrent") for n in a.above(node))
        width = node.meta["val"].shape[-1]
        if not mixed and any(known[n].name.startswith(("attention", "ffn")) for n in below if n in known):
            roles[node] = Role("embedding.projection", ("stands between the embeddings and the blocks",))
        elif width in vocabularies and not linears_below(a, node):
            roles[node] = Role("lm_head", (f"as wide as the token table ({width})", "no linear after it"))
        elif _pooled(a, node) and any(a.kind(u) == "activation" for u in node.users):
            roles[node] = Role("head.pooler", ("reads selected positions", "is activated"))
        elif not any(a.kind(n) == "linear" for n in below):
            roles[node] = Role("head.classifier", ("the last linear",))
        else:
            roles[node] = Role("head.dense", ("between the blocks and the last linear",))
    return roles


def _pooled(a: Annotated, node: fx.Node) -> bool:
    x = a.parts[node].inputs[0]
    while a.kind(x) == "shape" or x.target is aten.dropout.default:
        if x.target in _POOLING:
            return True
        source = x.args[0]
        if not isinstance(source, fx.Node):
            return False
        x = source
    return False
