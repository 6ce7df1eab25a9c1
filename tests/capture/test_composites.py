"""Shape functions of composite operators against torch's own results and against graphs exported without them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tersor.compiler.capture.composites import COMPOSITES

exporting = importlib.import_module("tersor.compiler.capture.export")
aten = torch.ops.aten
linear, attention = COMPOSITES[aten.linear.default], COMPOSITES[aten.scaled_dot_product_attention.default]
sizes = st.integers(0, 5)


def same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and ours.dtype == theirs.dtype


@given(st.lists(sizes, max_size=3), sizes, sizes, st.booleans())
def test_linear(leading: list[int], inputs: int, outputs: int, biased: bool) -> None:
    x, weight = torch.empty(*leading, inputs), torch.empty(outputs, inputs)
    bias = torch.empty(outputs) if biased else None
    assert same(linear(x, weight, bias), F.linear(x, weight, bias))


@given(st.integers(1, 3), st.integers(1, 3), sizes, st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_attention(batch: int, heads: int, queries: int, keys: int, width: int, values: int) -> None:
    q, k, v = (torch.randn(batch, heads, *s) for s in ((queries, width), (keys, width), (keys, values)))
    for mask in (None, torch.zeros(queries, keys), torch.zeros(batch, 1, 1, keys), torch.zeros(1, 1, queries, 1)):
        assert same(attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask))


def test_attention_with_fewer_heads_of_keys() -> None:
    q, k = torch.randn(2, 6, 3, 4), torch.randn(2, 2, 5, 4)
    expected = F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
    assert same(attention(q, k, k, enable_gqa=True), expected)


def test_attention_broadcasts_keys() -> None:
    q, k = torch.randn(2, 6, 3, 4), torch.randn(1, 1, 5, 4)
    assert same(attention(q, k, k), F.scaled_dot_product_attention(q, k, k))


@pytest.mark.parametrize(
    "shapes",
    [((1, 2, 3), (1, 2, 4), (1, 2, 3), None), ((1, 2, 3), (1, 2, 3), (1, 4, 3), None), ((1, 2, 3),) * 3 + ((2, 3),)],
    ids=["width", "keys", "mask"],
)
def test_attention_of_shapes_that_do_not_fit(shapes: tuple[Any, ...]) -> None:
    inputs = [None if s is None else torch.empty(s) for s in shapes]
    with pytest.raises(RuntimeError):
        F.scaled_dot_product_attention(*inputs)
    with pytest.raises(RuntimeError):
        attention(*inputs)


class Masked(nn.Module):
    """Only the mask's sum with the scores says that both inputs are of one length."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.project = nn.Linear(8, 8)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.project(self.embedding(tokens)).unflatten(-1, (2, 4)).transpose(1, 2)
        return F.scaled_dot_product_attention(x, x, x, mask[:, None, None, :].float()).transpose(1, 2).flatten(-2)


def symbols(gm: fx.GraphModule) -> list[list[str]]:
    """The sizes of the inputs and of the output, each symbol by its first place."""
    tensors = [n.meta["val"] for n in gm.graph.find_nodes(op="placeholder")]
    tensors += [n.meta["val"] for n in gm.graph.output_node().all_input_nodes]
    order: dict[str, str] = {}
    return [[order.setdefault(str(s), str(len(order))) for s in t.shape] for t in tensors]


def exported(kernels: Mapping[Any, Any], monkeypatch: pytest.MonkeyPatch) -> fx.GraphModule:
    monkeypatch.setattr(exporting, "COMPOSITES", kernels)
    example = {name: torch.ones(2, 6, dtype=torch.long) for name in ("tokens", "mask")}
    return exporting.export(Masked().eval(), example, training=False)


def test_the_graph_is_the_one_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with_them, without = exported(COMPOSITES, monkeypatch), exported({}, monkeypatch)
    assert symbols(with_them) == symbols(without)
    assert len({s for shape in symbols(with_them)[:2] for s in shape}) == 2
    assert [str(n.target) for n in with_them.graph.nodes] == [str(n.target) for n in without.graph.nodes]
