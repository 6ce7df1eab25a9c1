"""A linear over codes into levels against exact integers, at every CPU level that has a look-up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import RUNNABLE, WIDTHS, error, rounded_activations
from torch import Tensor

from tersor.backends.numba import lookupops
from tersor.backends.numba.features import detect
from tersor.backends.numba.forms import FORMS, Target
from tersor.backends.numba.lookuplinear import LookupLinear, round_levels
from tersor.backends.numba.quantiser import QMAX
from tersor.backends.numba.reference import activate
from tersor.compiler.errors import RequestError
from tersor.compiler.stores import Codebook, Codes, Dense

TOLERANCE = 1e-5  # about 200 float32 roundings of 2^-24 on sums of like magnitude
LEVELS = [level for level in RUNNABLE if level != "generic"]


def matrix(rows: int, columns: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Codes with both extremes, and levels with the extremes of a byte."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, count, (rows, columns), dtype=torch.uint8, generator=generator)
    codes[0], codes[-1] = count - 1, 0
    levels = torch.randint(0, 256, (count,), generator=generator).to(torch.uint8)
    levels[0] = 255
    return codes, levels


def expected(codes: Tensor, levels: Tensor, scale: float, bias: Tensor, x: Tensor, group: int) -> np.ndarray:
    weight = (levels[codes.long()].double() - 128) * float(np.float32(scale))
    return rounded_activations(x, group) @ weight.numpy().T + bias.double().numpy()


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 150),
    columns=st.integers(1, 300),
    count=st.integers(1, 16),
    tokens=st.sampled_from([0, 1, 2, 3, 7, 16, 33]),
    group=st.sampled_from([0, 32, 64]),
    level=st.sampled_from([name for name in WIDTHS if name != "generic"]),
    seed=st.integers(0, 1000),
)
def test_any_shape(rows: int, columns: int, count: int, tokens: int, group: int, level: str, seed: int) -> None:
    codes, levels = matrix(rows, columns, count, seed)
    bias, x = torch.randn(rows), torch.randn(tokens, columns)
    module = LookupLinear.from_codes(codes, levels, 0.01, bias, group, level)
    assert module.level == level
    assert error(module(x), expected(codes, levels, 0.01, bias, x, group)) < TOLERANCE
    torch.testing.assert_close(module.dense(), (levels[codes.long()].float() - 128) * 0.01)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("byte", [0, 255])
@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_extreme_levels_do_not_saturate(level: str, byte: int, tokens: int) -> None:
    """Every product has the greatest size a byte and an activation can have; all sums are exact integers here."""
    codes = torch.full((17, 256), 7, dtype=torch.uint8)
    levels = torch.full((16,), byte, dtype=torch.uint8)
    y = LookupLinear.from_codes(codes, levels, 1.0, level=level)(torch.full((tokens, 256), -QMAX))
    assert torch.equal(y, torch.full((tokens, 17), -(byte - 128) * 127.0 * 256))


@given(count=st.integers(1, 16), exponent=st.integers(-30, 30), seed=st.integers(0, 100))
def test_levels_are_rounded_to_half_a_step(count: int, exponent: int, seed: int) -> None:
    levels = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    held, scale = round_levels(levels)
    assert scale == pytest.approx(float(levels.abs().max()) / 127)
    assert bool(((held.double() - 128) * scale - levels).abs().max() <= scale / 2 * (1 + 1e-6))


def test_levels_of_zeros() -> None:
    held, scale = round_levels(torch.zeros(3))
    assert scale == 0
    assert torch.equal(held, torch.full((3,), 128, dtype=torch.uint8))


@pytest.mark.parametrize("level", RUNNABLE)
def test_a_codebook_keeps_its_codes_where_there_is_a_look_up(level: str) -> None:
    codes, _ = matrix(64, 128, 13)
    store = Codebook(Codes(codes, 4), Dense.of(torch.linspace(-1, 2, 13), "float16"))
    kernel = FORMS["codebook"].linear(store, None, Target(detect(level), 64))
    assert isinstance(kernel, LookupLinear) is (level != "generic")
    if isinstance(kernel, LookupLinear):
        assert kernel.codes.numel() == 64 * 128 // 2


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activation_and_gradient(activation: str) -> None:
    codes, levels = matrix(70, 96, 16)
    bias = torch.randn(70)
    module = LookupLinear.from_codes(codes, levels, 0.003, bias).with_activation(activation)  # type: ignore[arg-type]
    assert module is not None
    x = torch.randn(5, 96)
    before = torch.from_numpy(expected(codes, levels, 0.003, bias, x, 0))
    wanted = activate(before, activation)  # type: ignore[arg-type]
    assert error(module(x), wanted.numpy()) < TOLERANCE
    x.requires_grad_()
    (got,) = torch.autograd.grad(module(x).sum(), x)
    before.requires_grad_()
    (outer,) = torch.autograd.grad(activate(before, activation).sum(), before)  # type: ignore[arg-type]
    assert error(got, (outer @ module.dense().double()).numpy()) < 1e-4


def test_operator_contract() -> None:
    codes, levels = matrix(20, 96, 16)
    module = LookupLinear.from_codes(codes, levels, 0.01)
    arrays = (module.codes, module.levels, module.scale, module.bias)
    torch.library.opcheck(lookupops.linear, (torch.randn(3, 96, requires_grad=True), *arrays, *module._constants))


def test_refusals() -> None:
    codes, levels = matrix(4, 64, 16)
    with pytest.raises(RequestError, match="17 levels"):
        LookupLinear.from_codes(codes, torch.zeros(17, dtype=torch.uint8), 1.0)
    with pytest.raises(RequestError, match="bias has shape"):
        LookupLinear.from_codes(codes, levels, 1.0, torch.ones(3))
    with pytest.raises(RequestError, match="64 inputs"):
        LookupLinear.from_codes(codes, levels, 1.0)(torch.ones(3, 65))
