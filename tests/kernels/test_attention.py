"""Attention as a graph has it, against torch in float64."""

from __future__ import annotations

import operator
from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowered import lowered, run, steps
from torch import Tensor, fx
from torch.nn import functional as F

from tersor.backends.numba.backend import NumbaBackend
from tersor.backends.numba.native.graph import NativeGraph
from tersor.backends.numba.native.lower import HANDLERS
from tersor.compiler.modules import Attention

aten = torch.ops.aten
INTEGERS = 2e-3  # of the largest value, where products are of 16-bit integers: see test_attention16


@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)),
    st.integers(1, 70) | st.sampled_from([32, 64]),
    st.sampled_from(["none", "causal", "boolean", "additive", "per head"]),
    st.booleans(),
)
def test_agrees_with_torch(sizes: tuple[int, ...], width: int, kind: str, by_heads: bool) -> None:
    batch, key_heads, group, tokens, kept = sizes
    kept = max(kept, tokens) if kind == "causal" else kept

    def part(tokens: int, heads: int) -> Tensor:
        if by_heads:
            return torch.randn(batch, heads, tokens, width)
        return torch.randn(batch, tokens, heads, width).transpose(1, 2)

    q, k, v = part(tokens, key_heads * group), part(kept, key_heads), part(kept, key_heads)
    mask = None
    if kind in ("boolean", "additive", "per head"):
        mask = torch.rand(batch, key_heads * group if kind == "per head" else 1, tokens, kept) > 0.3
        mask[..., 0] = True
        if kind != "boolean":
            mask = torch.randn(mask.shape).masked_fill(~mask, -torch.inf)
    module = Attention(is_causal=kind == "causal", enable_gqa=group > 1)
    inputs = (q, k, v, *([] if mask is None else [mask]))
    found, calls = run(module, *inputs)
    wanted = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), mask.double() if mask is not None and mask.is_floating_point() else mask,
        is_causal=kind == "causal", enable_gqa=group > 1,
    )  # fmt: skip
    assert calls <= (mask is not None)  # its preparation
    if "attention" in steps(lowered(module, len(inputs)), *inputs):
        assert kind != "causal"
        assert kind != "per head" or key_heads * group == 1
        assert float((found - wanted).abs().max() / wanted.abs().max()) < INTEGERS
    else:
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5 * sqrt(width))


@pytest.mark.parametrize("joined", [True, False], ids=["one projection", "three"])
def test_projections_are_read_where_they_lie(joined: bool) -> None:
    """q, k and v are parts of one result, or results of their own: one step either way, and nothing is copied."""
    batch, tokens, heads, width = 2, 9, 2, 64
    whole = torch.randn(batch, tokens, 3 * heads * width)
    inputs = [whole] if joined else [x.contiguous() for x in whole.chunk(3, -1)]
    graph = fx.Graph()
    parts = [graph.placeholder(f"x{i}") for i in range(len(inputs))]
    if joined:
        split = graph.call_function(aten.split_with_sizes.default, (parts[0], [heads * width] * 3, -1))
        parts = [graph.call_function(operator.getitem, (split, i)) for i in range(3)]
    heads_first = []
    for part in parts:
        viewed = graph.call_function(aten.reshape.default, (part, [batch, tokens, heads, width]))
        heads_first.append(graph.call_function(aten.transpose.int, (viewed, 1, 2)))
    y = graph.call_function(aten.transpose.int, (graph.call_module("attention", tuple(heads_first)), 1, 2))
    graph.output((graph.call_function(aten.reshape.default, (y, [batch, tokens, -1])),))
    native = NativeGraph(fx.GraphModule({"attention": Attention()}, graph), HANDLERS, NumbaBackend().level.name)
    assert steps(native, *inputs) == ["attention"]
    q, k, v = (x.unflatten(-1, (heads, width)).transpose(1, 2).double() for x in whole.chunk(3, -1))
    wanted = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    with torch.inference_mode():
        (found,) = native(*inputs)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < INTEGERS


def test_few_queries_are_computed_in_floats() -> None:
    q, k = torch.randn(1, 2, 1, 64), torch.randn(1, 2, 40, 64)
    assert steps(lowered(Attention(), 3), q, k, k) == ["append", "attend"]
