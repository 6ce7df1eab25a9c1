"""Roles of feed-forward blocks: up, activation, down, where the result is added to what up came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx

from tersor.compiler.roles import Role
from tersor.compiler.roles.annotate import Annotated, aten, tensor_inputs
from tersor.compiler.roles.walk import blocks_above, linears_above, reached, residual_add, unshaped

_SPLITS = {aten.split.Tensor, aten.chunk.default, aten.split_with_sizes.default, aten.slice.Tensor}


def ffn_roles(a: Annotated, known: Mapping[fx.Node, Role]) -> dict[fx.Node, Role]:
    """The residual test tells a feed-forward block from a pooler or a classifier."""
    roles: dict[fx.Node, Role] = {}
    for down in a.of_kind("linear"):
        ups = [n for n in linears_above(a, a.parts[down].inputs[0]) if n not in known]
        if down in known or down in roles or not ups or not _returns_to_stream(a, down, a.parts[ups[0]].inputs[0]):
            continue
        if len({unshaped(a, a.parts[n].inputs[0]) for n in ups}) != 1:
            continue
        roles[down] = Role("ffn.down", ("its result is added to what the block read",))
        activated = [n for n in ups if _activated(a, n)]
        for up in ups:
            if len(ups) == 1:
                name = "ffn.gate_up" if _split(a, up) else "ffn.up"
                why = (
                    "its result is split and multiplied" if name == "ffn.gate_up" else "widens what ffn.down takes back"
                )
            else:
                gate = up in activated and len(activated) < len(ups)
                name, why = (
                    ("ffn.gate", "the activated factor") if gate else ("ffn.up", "the factor without activation")
                )
            roles.setdefault(up, Role(name, (why, "feeds ffn.down")))
    return roles


def _returns_to_stream(a: Annotated, down: fx.Node, source: fx.Node) -> bool:
    """Whether down's result is added, at once or after another branch, to `source` or something `source` is made of."""
    found = residual_add(a, down)
    for _ in range(2):
        if found is None:
            return False
        add, other = found
        if other is source or a.depends(source, other):
            return True
        further = [u for u in add.users if u.target is aten.add.Tensor]
        operands = [n for n in further[0].args if isinstance(n, fx.Node) and n is not add] if further else []
        found = (further[0], operands[0]) if operands else None
    return False


def _activated(a: Annotated, up: fx.Node) -> bool:
    """Whether an activation stands between up and the gating product."""

    def further(n: fx.Node) -> Iterable[fx.Node]:
        gating = n.target is aten.mul.Tensor and len(tensor_inputs(n)) == 2 and len(blocks_above(a, n)) > 1
        return n.users if not gating and a.kind(n) in ("shape", "pointwise") else ()

    return any(a.kind(n) == "activation" for n in reached(up.users, further))


def _split(a: Annotated, up: fx.Node) -> bool:
    """Whether the result of up is cut in parts."""
    views = reached(up.users, lambda n: n.users if a.kind(n) == "shape" else ())
    return any(n.target in _SPLITS for n in views)
