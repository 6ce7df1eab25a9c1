"""Stores of every form in one native program, with nothing left to torch."""

from __future__ import annotations

import copy

import pytest
import torch
from kernel_stores import STORES
from torch import Tensor, fx, nn

from tersor.backends.numba.backend import NumbaBackend
from tersor.backends.numba.denselinear import DenseLinear
from tersor.backends.numba.gather import GatheredEmbedding
from tersor.backends.numba.native.graph import NativeGraph
from tersor.compiler.compressed import CompressedEmbedding, CompressedLinear, StoredWeight
from tersor.compiler.errors import RequestError

aten = torch.ops.aten


class Small(nn.Module):
    """Two linears read one value, an activation follows one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first = nn.Embedding(60, 48), nn.Linear(48, 100)
        self.second, self.last = nn.Linear(48, 100), nn.Linear(100, 30)

    def forward(self, index: Tensor) -> Tensor:
        x = self.table(index)
        return self.last(aten.add.Tensor(aten.relu.default(self.first(x)), self.second(x)))


def graph_of(name: str) -> fx.GraphModule:
    torch.manual_seed(1)
    graph = fx.symbolic_trace(Small())
    for path, leaf in list(graph.named_modules()):
        if isinstance(leaf, nn.Linear | nn.Embedding) and name != "kept":
            weight = StoredWeight(STORES[name](leaf.weight.detach()))
            bias = None if isinstance(leaf, nn.Embedding) else leaf.bias
            made = (
                CompressedEmbedding(weight, None) if isinstance(leaf, nn.Embedding) else CompressedLinear(weight, bias)
            )
            graph.set_submodule(path, made)
    return graph


@pytest.mark.parametrize("name", ["kept", *STORES])
def test_every_form_is_native(name: str) -> None:
    graph = graph_of(name)
    native, rows = NumbaBackend().emit(copy.deepcopy(graph))
    assert all(row.kernel.startswith("numba:") for row in rows)
    assert isinstance(native, NativeGraph)
    with torch.inference_mode():
        for shape in ((2, 9), (1, 1), (3, 1)):
            index = torch.randint(0, 60, shape)
            program = native.program(index)
            assert not program.torch_calls
            found, wanted = native(index), graph(index)
            assert torch.equal(found, native.lowered(index))
            assert float((found - wanted).norm() / wanted.norm()) < 0.05  # rounding of activations, twice
    with pytest.raises(RequestError, match="index 60 is out of range"), torch.inference_mode():
        native(torch.tensor([[3, 60]]))


def test_layers_without_a_store_are_exact_and_share_their_table() -> None:
    graph = graph_of("kept")
    native, rows = NumbaBackend().emit(graph)
    assert rows == []
    kinds = [type(leaf) for leaf in native.lowered.children()]
    assert kinds.count(DenseLinear) == 3
    assert kinds.count(GatheredEmbedding) == 1
    index = torch.randint(0, 60, (4, 7))
    with torch.inference_mode():
        found, wanted = native(index), graph(index)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6
    table = graph.get_submodule("table")
    assert isinstance(table, nn.Embedding)
    assert native.lowered.get_submodule("table").get_buffer("array0").data_ptr() == table.weight.data_ptr()
