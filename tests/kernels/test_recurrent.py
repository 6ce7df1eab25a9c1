"""Recurrent layers in native programs against exact steps, at every CPU level this machine runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import FASTEST, IN_PAIRS, RUNNABLE, WIDTHS, Matrix, rounded_activations
from numba import njit
from recurrent_oracle import Layer, cell, largest_error, logistic, native, random_layer
from torch import Tensor

from tersor.backends.numba.cells import MODES, CellSpec, Mode, make_cell
from tersor.backends.numba.features import level_named
from tersor.backends.numba.linear import QuantizedLinear
from tersor.backends.numba.recurrent import QuantizedRecurrent
from tersor.backends.numba.recurrentcheck import trusted
from tersor.backends.numba.recurrentstep import step_of
from tersor.compiler.errors import RequestError

# Products are within 1e-5 of the largest one, as those of linears are, and no gate makes more than twice that of it.
TOLERANCE = 2e-5


def states(layer: Layer, batch: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(layer.matrices), batch, layer.hidden)
    return tuple(0.7 * torch.randn(shape, generator=generator) for _ in range(2))  # type: ignore[return-value]


def inputs(layer: Layer, batch: int, length: int, seed: int = 4) -> Tensor:
    columns = layer.matrices[0][0].codes.shape[1]
    return torch.randn(batch, length, columns, generator=torch.Generator().manual_seed(seed))


def run(layer: Layer, x: Tensor, h: Tensor, c: Tensor, batch_first: bool = True, level: str = FASTEST) -> float:
    """The largest error of a program that holds no torch call."""
    graph = native(layer.module(batch_first, level))
    given = (x if batch_first else x.transpose(0, 1).contiguous(), h, c)
    with torch.inference_mode():
        assert not graph.program(*given).torch_calls
        y, h_last, *rest = graph(*given)
    y = y if batch_first else y.transpose(0, 1)
    return largest_error(layer, x, h, c, y, h_last, rest[0] if rest else None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", RUNNABLE)
def test_every_step_is_exact_at_every_level(level: str, mode: Mode) -> None:
    layer = random_layer(mode, 40, 37, directions=2)
    assert run(layer, inputs(layer, 3, 5), *states(layer, 3), level=level) < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize(("bits", "room"), [(8, 1), (7, 2)])
def test_every_step_over_narrow_codes(level: str, mode: Mode, bits: int, room: int) -> None:
    layer = random_layer(mode, 40, 37, bits, directions=2, room=room)
    linears = layer.module(level=level).linears
    rooms = [linear.layout.room for linear in linears]  # type: ignore[union-attr]
    assert min(rooms) >= room if level in IN_PAIRS else max(rooms) == 0  # type: ignore[type-var,operator]
    assert run(layer, inputs(layer, 3, 5), *states(layer, 3), level=level) < TOLERANCE


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    columns=st.integers(1, 140),
    hidden=st.integers(1, 140),
    batch=st.sampled_from([1, 2, 5, 13, 31, 60]),
    length=st.integers(1, 5),
    bits=st.integers(2, 8),
    groups=st.sampled_from([(0, 0), (0, 64), (32, 32), (64, 64), (64, 0), (128, 64)]),
    directions=st.sampled_from([1, 2]),
    batch_first=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_width_and_group(
    mode: Mode, columns: int, hidden: int, batch: int, length: int, bits: int, groups: tuple[int, int],
    directions: int, batch_first: bool, seed: int,
) -> None:  # fmt: skip
    layer = random_layer(mode, columns, hidden, bits, *groups, directions, seed)
    assert run(layer, inputs(layer, batch, length, seed), *states(layer, batch, seed), batch_first) < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
def test_layers_follow_each_other(mode: Mode) -> None:
    """Three layers are bit for bit what three programs of one layer compute."""
    layers = [random_layer(mode, width, 33, directions=2, seed=i) for i, width in enumerate((20, 66, 66))]
    linears = [linear for layer in layers for linear in layer.module().linears]
    stacked = QuantizedRecurrent(mode, linears, 33, True, True, FASTEST)
    x, (h, c) = inputs(layers[0], 4, 6), states(layers[0], 4)
    h, c = h.repeat(3, 1, 1), c.repeat(3, 1, 1)
    with torch.inference_mode():
        together = native(stacked)(x, h, c)
        lasts = []
        for i, layer in enumerate(layers):
            x, *last = native(layer.module())(x, h[2 * i : 2 * i + 2], c[2 * i : 2 * i + 2])
            lasts.append(last)
    for actual, wanted in zip(together, (x, *map(torch.cat, zip(*lasts, strict=True))), strict=True):
        assert torch.equal(actual, wanted)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_threads_and_neighbours_change_no_bit(batch: int, two_threads: None) -> None:
    layer = random_layer("lstm", 64, 80, directions=2)
    graph, x, (h, c) = native(layer.module()), inputs(layer, batch, 9), states(layer, batch)
    with torch.inference_mode():
        shared = graph(x, h, c)
        torch.set_num_threads(1)
        alone = graph(x, h, c)
        rows = [graph(x[i : i + 1], h[:, i : i + 1], c[:, i : i + 1]) for i in range(batch)]
    assert all(map(torch.equal, shared, alone))
    assert torch.equal(alone[0], torch.cat([row[0] for row in rows]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", WIDTHS)
def test_gates_are_within_their_bound(level: str, mode: Mode) -> None:
    """Every gate over its range while the others stand at random places: 3e-7 a function, a few of which meet."""
    lanes = level_named(level).lanes
    kernel = make_cell(CellSpec(level, mode))

    @njit  # type: ignore[untyped-decorator]
    def call(u: int, z: int, size: int, h: int, c: int, vectors: int) -> None:
        kernel(u, z, size, h, c, vectors)

    gates = {"lstm": 4, "gru": 3}.get(mode, 1)
    count = 4000 // lanes * lanes
    generator = torch.Generator().manual_seed(0)
    for swept in range(gates):
        u, z = torch.randn(2, gates, count, generator=generator)
        u[swept] = torch.linspace(-40, 40, count)
        u[swept, :3] = torch.tensor([-1e30, 1e30, 0.0])
        h, c = torch.rand(2, count, generator=generator) * 2 - 1
        new, memory = h.clone(), c.clone()
        call(u.data_ptr(), z.data_ptr(), 4 * count, new.data_ptr(), memory.data_ptr(), count // lanes)
        wide = (t.double().numpy().reshape(-1) for t in (u, z, h, c))
        wanted, kept = cell(mode, *wide)
        scale = np.maximum(np.abs(wanted), 1)
        # u + z itself is rounded to 2^-24 of its size, at a slope that falls faster than it grows.
        assert float(np.abs((new.double().numpy() - wanted) / scale).max()) < 8e-7
        assert float(np.abs(memory.double().numpy() - kept).max()) < 8e-7 or mode != "lstm"


def test_the_oracle_knows_its_functions() -> None:
    x = np.array([-600.0, -1.0, 0.0, 2.0, 600.0])
    np.testing.assert_allclose(logistic(x), torch.from_numpy(x).sigmoid().numpy(), atol=1e-15)


def test_zeros_stay_zeros() -> None:
    """A state without inputs, weights times zero and no bias: the gates are exact at 0."""
    linears = [
        QuantizedLinear.from_codes(
            torch.full((80, 20), 200, dtype=torch.uint8), torch.ones(80, 1), torch.full((80, 1), 128.0), 8
        )
        for _ in range(2)
    ]
    graph = native(QuantizedRecurrent("lstm", linears, 20, False, True, FASTEST))
    with torch.inference_mode():
        for out in graph(torch.zeros(2, 3, 20), torch.zeros(1, 2, 20), torch.zeros(1, 2, 20)):
            assert not out.any()


@pytest.mark.parametrize("mode", MODES)
def test_not_a_number_stays_in_its_row(mode: Mode) -> None:
    layer = random_layer(mode, 20, 17)
    x, (h, c) = inputs(layer, 3, 4), states(layer, 3)
    x[1, 2, 5] = torch.nan
    with torch.inference_mode():
        y = native(layer.module())(x, h, c)[0]
    finite = y.isfinite().all(-1)
    assert finite.tolist() == [[True] * 4, [True, True, False, False], [True] * 4]


@pytest.mark.parametrize("mode", MODES)
def test_step_by_step_through_torch_agrees(mode: Mode) -> None:
    """What traces and gradients see: the same linears, torch's functions between them."""
    layer = random_layer(mode, 30, 24, directions=2)
    x, (h, c) = inputs(layer, 3, 4), states(layer, 3)
    module = layer.module()
    with torch.inference_mode():
        y, last = module(x, (h, c) if mode == "lstm" else h)
    h_last, c_last = last if mode == "lstm" else (last, None)
    assert largest_error(layer, x, h, c, y, h_last, c_last) < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
def test_gradients_go_straight_through_the_rounding(mode: Mode) -> None:
    """As if rounding a value had been the addition of a constant: torch differentiates that in float64."""
    layer = random_layer(mode, 30, 24, bits=4)

    def product(matrix: Matrix, x: Tensor) -> Tensor:
        rounded = torch.from_numpy(rounded_activations(x.detach().float(), 0))
        bias = torch.zeros(()) if matrix.bias is None else matrix.bias.double()
        return (x + (rounded - x.detach())) @ torch.from_numpy(matrix.dense()).T + bias

    x, (h, c) = inputs(layer, 3, 4), states(layer, 3)
    ours = [t.clone().requires_grad_() for t in (x, h, c)]
    y, _ = layer.module()(ours[0], (ours[1], ours[2]) if mode == "lstm" else ours[1])
    y.square().sum().backward()
    wanted = [t.double().requires_grad_() for t in (x, h, c)]
    hidden, memory, total = wanted[1][0], wanted[2][0], torch.zeros((), dtype=torch.float64)
    for time in range(4):
        u, z = (product(matrix, v) for matrix, v in zip(layer.matrices[0], (wanted[0][:, time], hidden), strict=True))
        hidden, memory = step_of(mode, u, z, hidden, memory)
        total = total + hidden.square().sum()
    total.backward()
    for actual, expected in list(zip(ours, wanted, strict=True))[: 3 if mode == "lstm" else 2]:
        assert actual.grad is not None
        assert expected.grad is not None
        assert float((actual.grad - expected.grad).norm() / expected.grad.norm()) < 1e-4


def test_no_rows_and_no_state() -> None:
    layer = random_layer("gru", 10, 12)
    module = layer.module()
    with torch.inference_mode():
        y, last = native(module)(torch.zeros(0, 4, 10), torch.zeros(1, 0, 12), torch.zeros(1, 0, 12))
        assert y.shape == (0, 4, 12)
        assert last.shape == (1, 0, 12)
        x = inputs(layer, 2, 3)
        assert torch.equal(module(x)[0], module(x, torch.zeros(1, 2, 12))[0])


def test_refusals() -> None:
    module = random_layer("lstm", 10, 12).module()
    with pytest.raises(RequestError, match="3 dimensions"):
        module(torch.zeros(4, 10))
    with pytest.raises(RequestError, match="state of shape"):
        module(torch.zeros(2, 4, 10), (torch.zeros(1, 3, 12), torch.zeros(1, 3, 12)))
    with pytest.raises(RequestError, match="do not make layers"):
        QuantizedRecurrent("lstm", list(module.linears)[:1], 12, False, True, FASTEST)


@pytest.mark.parametrize("level", RUNNABLE)
def test_every_level_is_trusted(level: str) -> None:
    assert all(trusted(mode, level) for mode in MODES)
