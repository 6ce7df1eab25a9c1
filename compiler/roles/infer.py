"""All roles of a graph; each step sees what the earlier ones found and never overrules them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx

from tersor.compiler.roles import Role
from tersor.compiler.roles.annotate import Annotated
from tersor.compiler.roles.attention import attention_roles
from tersor.compiler.roles.embeddings import embedding_roles
from tersor.compiler.roles.ffn import ffn_roles
from tersor.compiler.roles.heads import head_roles
from tersor.compiler.roles.norms import norm_roles


def infer_roles(
    annotated: Annotated, indices: Mapping[fx.Node, Tensor], example: Mapping[str, Tensor]
) -> dict[fx.Node, Role]:
    """Node -> role. `indices` are the values embeddings were looked up with on `example`. What no rule explains has
    no role."""
    roles = attention_roles(annotated)
    roles |= ffn_roles(annotated, roles)
    roles |= embedding_roles(annotated, indices, example)
    roles |= head_roles(annotated, roles)
    roles |= norm_roles(annotated, roles)
    return roles
