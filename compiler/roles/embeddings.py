"""Roles of embeddings, from what they were looked up with on the example."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from tersor.compiler.roles import Role
from tersor.compiler.roles.annotate import BLOCKS, Annotated, tensor_inputs
from tersor.compiler.roles.walk import reached

_FEW_ROWS = 16


def embedding_roles(
    a: Annotated, indices: Mapping[fx.Node, Tensor], example: Mapping[str, Tensor]
) -> dict[fx.Node, Role]:
    """token: an input itself; position: counts up; token_type: one value, or an input with few values;
    relative_bias: reaches the mask of an attention."""
    roles: dict[fx.Node, Role] = {}
    for core in a.of_kind("attention"):
        mask = a.parts[core].mask
        if isinstance(mask, fx.Node):
            for node in _embeddings_above(a, mask):
                roles[node] = Role("embedding.relative_bias", ("added to attention scores",))
    inputs = {n: name for n, i in indices.items() if (name := _input(i, example)) is not None}
    most = max((_rows(a, n) for n in inputs), default=0)
    for node in a.of_kind("embedding"):
        roles.setdefault(node, _role(_rows(a, node), most, indices.get(node), inputs.get(node)))
    return roles


def _role(rows: int, most: int, index: Tensor | None, name: str | None) -> Role:
    if index is None:
        return Role("embedding.other", ("its index depends on parameters",))
    if _counts(index):
        return Role("embedding.position", ("looked up with 0, 1, 2, ...",))
    if name is not None and (rows > _FEW_ROWS or rows == most):
        return Role("embedding.token", (f"looked up with the input {name!r}",))
    if name is not None or bool((index == index.flatten()[0]).all()):
        return Role("embedding.token_type", (f"{rows} rows", "looked up with few values"))
    return Role("embedding.other", ("looked up with computed values",))


def _counts(index: Tensor) -> bool:
    rows = index.reshape(-1, index.shape[-1]) if index.dim() else index.reshape(1, 1)
    return rows.shape[1] > 1 and bool((rows[:, 1:] - rows[:, :-1] == 1).all(1).any())


def _input(index: Tensor, example: Mapping[str, Tensor]) -> str | None:
    """The input the index is, as it is or with batch and sequence exchanged."""
    for name, value in example.items():
        if value.numel() == index.numel():
            own, flat = value.to(index.dtype), index.flatten()
            if torch.equal(own.flatten(), flat) or (own.dim() == 2 and torch.equal(own.t().flatten(), flat)):
                return name
    return None


def _rows(a: Annotated, node: fx.Node) -> int:
    weight = a.parts[node].weight
    return int(weight.meta["val"].shape[0]) if weight is not None else 0


def _embeddings_above(a: Annotated, node: fx.Node) -> list[fx.Node]:
    every = reached([node], lambda n: () if a.kind(n) in BLOCKS or a.kind(n) == "embedding" else tensor_inputs(n))
    return [n for n in every if a.kind(n) == "embedding"]
