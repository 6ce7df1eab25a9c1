"""Which recurrent layers the backend takes, in which forms, and why not others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from tersor.backends.numba.backend import NumbaBackend
from tersor.backends.numba.denselinear import DenseLinear
from tersor.backends.numba.linear import QuantizedLinear
from tersor.backends.numba.recurrent import QuantizedRecurrent
from tersor.compiler.compressed import CompressedRecurrent, StoredWeight
from tersor.compiler.stores import Affine, Codes, Dense


def affine(weight: Tensor, group: int) -> Affine:
    """Nearest of 255 levels, symmetric."""
    groups = weight.detach().reshape(weight.shape[0], -1, group)
    scale = groups.abs().amax(-1) / 127
    codes = (groups / scale[..., None]).round() + 128
    return Affine(Codes(codes.to(torch.uint8).reshape(weight.shape), 8), Dense(scale), None, group)


class Model(nn.Module):
    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, last = self.layer(x)
        return y, last


class Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.RNNBase)


def graph_of(layer: nn.RNNBase, groups: dict[str, int]) -> fx.GraphModule:
    """A graph that calls the layer, with 8-bit stores in place of the weights named in `groups`."""
    model = Model(layer)
    graph = fx.GraphModule(model, Tracer().trace(model))
    if groups:
        stored = {name: StoredWeight(affine(getattr(layer, name), group)) for name, group in groups.items()}
        plain = {name: p for name, p in layer.named_parameters() if name not in groups}
        graph.set_submodule("layer", CompressedRecurrent(layer, stored, plain))
    return graph


GROUPS = {"weight_ih_l0": 64, "weight_hh_l0": 64}


@pytest.mark.parametrize(
    ("groups", "kinds"),
    [
        (GROUPS, [QuantizedLinear, QuantizedLinear]),
        ({"weight_ih_l0": 64}, [QuantizedLinear, DenseLinear]),
        ({"weight_hh_l0": 32}, [DenseLinear, QuantizedLinear]),
        ({}, [DenseLinear, DenseLinear]),
    ],
)
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_every_matrix_runs_in_its_own_form(
    layer: type[nn.RNNBase], groups: dict[str, int], kinds: list[type[nn.Module]]
) -> None:
    torch.manual_seed(0)
    graph = graph_of(layer(64, 64, batch_first=True), groups)  # type: ignore[call-arg]
    x = torch.randn(3, 6, 64)
    with torch.no_grad():
        wanted, _ = graph(x)
        lowered, rows = NumbaBackend().emit(graph)
        actual, _ = lowered(x)
        assert not lowered.program(x).torch_calls
    assert [row.kernel.split(":")[0] for row in rows] == ["numba"] * bool(groups)
    kernel = lowered.lowered.get_submodule("layer")
    assert isinstance(kernel, QuantizedRecurrent)
    assert [type(linear) for linear in kernel.linears] == kinds
    # Inputs of codes are rounded to 8 bits; without codes only floats are.
    assert float((actual - wanted).norm() / wanted.norm()) < (0.01 if groups else 1e-5)


def test_states_that_a_tanh_bounds_have_one_scale() -> None:
    for layer, group in ((nn.LSTM(64, 64), 0), (nn.RNN(64, 64, nonlinearity="relu"), 64)):
        lowered, _ = NumbaBackend().emit(graph_of(layer, {"weight_ih_l0": 64, "weight_hh_l0": 64}))
        kernel = lowered.lowered.get_submodule("layer")
        assert isinstance(kernel, QuantizedRecurrent)
        found = [linear.layout.activation_group for linear in kernel.linears if isinstance(linear, QuantizedLinear)]
        assert found == [64, group]


def test_what_has_no_kernel_stays_eager_with_a_reason() -> None:
    graph = graph_of(nn.GRU(48, 48), {"weight_ih_l0": 16, "weight_hh_l0": 48})
    x = torch.randn(4, 2, 48)
    with torch.no_grad():
        wanted, _ = graph(x)
        lowered, rows = NumbaBackend().emit(graph)
        assert torch.equal(lowered(x)[0], wanted)
    (row,) = rows
    assert row.kernel == "eager"
    assert row.reason == "weight_ih_l0: groups of 16 columns are not a multiple of 32"


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch says so, whoever calls it
def test_a_projected_state_is_left_to_torch() -> None:
    graph = graph_of(nn.LSTM(16, 12, proj_size=5), {})
    x = torch.randn(4, 2, 16)
    with torch.no_grad():
        wanted, _ = graph(x)
        lowered, rows = NumbaBackend().emit(graph)
        assert torch.equal(lowered(x)[0], wanted)
    assert not rows
    assert isinstance(lowered.lowered.get_submodule("layer"), nn.LSTM)
