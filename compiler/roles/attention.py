"""Roles around attention: from its operands back to projections, from its result on to the output projection."""

from __future__ import annotations

from torch import fx

from tersor.compiler.roles import Role
from tersor.compiler.roles.annotate import Annotated
from tersor.compiler.roles.walk import linears_above, linears_below, stream


def attention_roles(a: Annotated) -> dict[fx.Node, Role]:
    """Projections and cores. Queries and keys made from different streams mean cross attention."""
    roles: dict[fx.Node, Role] = {}
    for core in a.of_kind("attention"):
        q, k, v = (linears_above(a, n, through=("norm",)) for n in a.parts[core].inputs)
        out = linears_below(a, core, ("shape", "pointwise"))[:1]
        if not (q and k and v and out):
            roles[core] = Role("attention.core", ("an attention without the four projections",))
            continue
        cross = stream(a, a.parts[q[0]].inputs[0]) is not stream(a, a.parts[k[0]].inputs[0])
        prefix = "cross_attention" if cross else "attention"
        streams = "queries and keys come from " + ("different streams" if cross else "one stream")
        if set(q) == set(k) == set(v):
            found = {"qkv": q[0]}
        elif set(k) == set(v):
            found = {"query": q[0], "kv": k[0]}
        else:
            found = {"query": q[0], "key": k[0], "value": v[0]}
        for name, node in found.items():
            roles.setdefault(node, Role(f"{prefix}.{name}", (f"its result is the {name} of an attention", streams)))
        roles.setdefault(out[0], Role(f"{prefix}.output", ("first linear after an attention", streams)))
        roles[core] = Role(f"{prefix}.core", ("softmax attention", streams))
    return roles
