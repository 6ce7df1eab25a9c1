"""Modules of ours that stand in a captured graph."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """softmax(scale * q k^T + mask) v with dropout `p` on the weights while training.

    q (batch, heads, queries, width), k and v (batch, key heads, keys, width), mask broadcastable to
    (batch, heads, queries, keys), boolean (True = attend) or additive.
    """

    def __init__(
        self, p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False
    ) -> None:
        super().__init__()
        self.p = p
        self.is_causal = is_causal
        self.scale = scale
        self.enable_gqa = enable_gqa

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            mask,
            dropout_p=self.p if self.training else 0.0,
            is_causal=self.is_causal,
            scale=self.scale,
            enable_gqa=self.enable_gqa,
        )

    def extra_repr(self) -> str:
        return f"p={self.p}, is_causal={self.is_causal}, scale={self.scale}, enable_gqa={self.enable_gqa}"
