"""Sums and means of table rows, in every form of a table, against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import WIDTHS
from kernel_stores import STORES, values
from torch import Tensor, fx, nn

from tersor.backends.numba import bags
from tersor.backends.numba.backend import NumbaBackend
from tersor.backends.numba.bags import SummedEmbedding
from tersor.backends.numba.features import detect
from tersor.backends.numba.forms import FORMS, Target
from tersor.backends.numba.gather import GatheredEmbedding
from tersor.backends.numba.native.graph import NativeGraph
from tersor.compiler.compressed import CompressedEmbedding, StoredWeight
from tersor.compiler.errors import RequestError

aten = torch.ops.aten
TABLES = [name for name in STORES if not name.startswith("chain")]


def embedding(name: str, rows: int, columns: int, seed: int = 0, level: str | None = None) -> GatheredEmbedding:
    store = STORES[name](values(rows, columns, seed))
    module = FORMS[store.kind].embedding(store, Target(detect(level), 64))
    assert isinstance(module, GatheredEmbedding)
    return module


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(TABLES),
    rows=st.integers(2, 60),
    columns=st.integers(2, 100),
    bags=st.integers(0, 5),
    length=st.integers(0, 9),
    mean=st.booleans(),
    weighted=st.booleans(),
    level=st.sampled_from(WIDTHS),
    seed=st.integers(0, 1000),
)
def test_bags_of_equal_length(
    name: str, rows: int, columns: int, bags: int, length: int, mean: bool, weighted: bool, level: str, seed: int
) -> None:
    table = embedding(name, rows, columns, seed, level)
    index = torch.randint(0, rows, (bags, length))
    weights = torch.randn(bags, length) if weighted and not mean else None
    found = SummedEmbedding(table, mean, 1)(index, weights)
    looked_up = table.dense()[index].double() * (1 if weights is None else weights.double().unsqueeze(-1))
    wanted = looked_up.mean(1) if mean else looked_up.sum(1)
    assert found.shape == (bags, columns)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(TABLES),
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=6),
    mean=st.booleans(),
    level=st.sampled_from(WIDTHS),
)
def test_bags_between_starts(name: str, sizes: list[int], mean: bool, level: str) -> None:
    table = embedding(name, 40, 70, level=level)
    starts = torch.tensor([0, *sizes]).cumsum(0)
    index = torch.randint(0, 40, (int(starts[-1]),))
    found = SummedEmbedding(table, mean, 0)(index, None, starts)
    rows = table.dense()[index].double()
    for n, size in enumerate(sizes):
        bag = rows[int(starts[n]) : int(starts[n + 1])]
        wanted = bag.sum(0) / (max(size, 1) if mean else 1)
        torch.testing.assert_close(found[n].double(), wanted, rtol=1e-5, atol=1e-6)


def test_starts_beyond_the_index_read_nothing() -> None:
    table = embedding("affine", 9, 32)
    found = SummedEmbedding(table, False, 0)(torch.tensor([1, 2]), None, torch.tensor([-5, 1, 2**40]))
    torch.testing.assert_close(found, table.dense()[[1, 2]])


@pytest.mark.parametrize("wrong", [-1, 10])
def test_index_out_of_range(wrong: int) -> None:
    with pytest.raises(RequestError, match=f"index {wrong} is out of range: the embedding has rows 0 to 9"):
        SummedEmbedding(embedding("affine", 10, 48), True, 1)(torch.tensor([[0, wrong, 4]]))


def test_operator_contract_and_gradient_of_the_weights() -> None:
    table = embedding("codebook4", 20, 33)
    index = torch.randint(0, 20, (3, 4))
    torch.library.opcheck(bags.summed, (index, None, None, True, *table.constants()))
    weights = torch.randn(3, 4, requires_grad=True)
    SummedEmbedding(table, False, 1)(index, weights).square().sum().backward()
    given = weights.grad
    again = weights.detach().requires_grad_()
    (table.dense()[index] * again.unsqueeze(-1)).sum(1).square().sum().backward()
    torch.testing.assert_close(given, again.grad)


class Pooled(nn.Module):
    """Every way to pool that becomes one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 20)

    def forward(self, index: Tensor, mask: Tensor) -> list[Any]:
        weights = aten.to.dtype(aten.expand.default(aten.unsqueeze.default(mask, -1), [3, 5, 20]), torch.float32)
        return [
            aten.mean.dim(self.table(index), [1]),
            aten.sum.dim_IntList(self.table(index), [-2]),
            aten.sum.dim_IntList(aten.mul.Tensor(self.table(index), weights), [1]),
            aten.segment_reduce.default(
                self.table(aten.reshape.default(index, [-1])), "mean", offsets=aten.cumsum.default(mask[0], 0), axis=0,
                unsafe=True, initial=0,
            ),
        ]  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_pooling_in_a_graph_is_native(name: str) -> None:
    graph = fx.symbolic_trace(Pooled())
    weight = graph.get_submodule("table").weight.detach()
    graph.set_submodule("table", CompressedEmbedding(StoredWeight(STORES[name](weight)), None))
    index, mask = torch.randint(0, 30, (3, 5)), torch.tensor([[0, 4, 0, 7, 4], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]])
    wanted = graph(index, mask)
    native, _ = NumbaBackend().emit(graph)
    assert isinstance(native, NativeGraph)
    kinds = [type(leaf) for leaf in native.lowered.children()]
    assert kinds.count(SummedEmbedding) == 4
    assert GatheredEmbedding not in kinds
    with torch.inference_mode():
        torch.testing.assert_close(native(index, mask), wanted, rtol=1e-5, atol=1e-6)
        names = [str(call) for call in native.program(index, mask).torch_calls]
    assert not any(op in name for name in names for op in ("embedding", "segment", "aten.sum", "mean"))


def test_what_is_not_a_bag_is_left_alone() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(30, 20)

        def forward(self, index: Tensor) -> list[Any]:
            rows = self.table(index)  # read twice
            return [aten.sum.dim_IntList(rows, [1]), rows, aten.sum.dim_IntList(self.table(index), [0, 1])]

    model = Other()
    wanted_index = torch.randint(0, 30, (3, 5))
    wanted = model(wanted_index)
    native, _ = NumbaBackend().emit(fx.symbolic_trace(model))
    with torch.inference_mode():
        torch.testing.assert_close(native(wanted_index), wanted)
        first = SummedEmbedding(embedding("dense", 9, 6), False, 0)  # over the bags, not over their rows
        torch.testing.assert_close(first(wanted_index % 9), first.embedding.dense()[wanted_index % 9].sum(0))
