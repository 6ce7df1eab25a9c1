"""quant.uniform against a quantiser written out from equations 36 and 37."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from tersor.passes.quantize.int8 import Int8, Int8Quantisation
from tersor.passes.quantize.uniform import Uniform, UniformQuantisation, grouped

METHOD = UniformQuantisation()

SCALE = 2.0**-10
"""A scale is stored with eleven significant bits and may be taken one step lower, so that the outer codes are used: it
lies within 2^-10 of the exact one, and so does everything that is a multiple of it."""


def equation_37(x: np.ndarray, bits: int) -> np.ndarray:
    """q_k(x) = floor((2^k - 1) x + 1/2) / (2^k - 1) for x in [0, 1]."""
    levels = 2**bits - 1
    return np.floor(levels * x + 0.5) / levels


def equation_36(x: np.ndarray, bits: int) -> np.ndarray:
    """The nearest of 2^k levels at equal steps in [-1, 1] (half up)."""
    levels = 2**bits - 1
    grid = np.arange(2**bits) * 2 / levels - 1
    distance = np.abs(x[..., None] - grid)
    upper = 2**bits - 1 - np.argmin(distance[..., ::-1], axis=-1)
    return grid[upper]


def reference(row: np.ndarray, bits: int) -> np.ndarray:
    """Equations 38 and 39 over the range that holds zero: alpha q_k((x - beta) / alpha) + beta."""
    beta, top = min(row.min(), 0.0), max(row.max(), 0.0)
    alpha = top - beta
    return row * 0 + beta if alpha == 0 else alpha * equation_37((row - beta) / alpha, bits) + beta


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def steps(weight: Tensor, bits: int, group: int) -> Tensor:
    """The exact step s of each weight's group, (rows, columns)."""
    parts = grouped(weight, group)
    span = (parts.amax(-1).clamp(min=0) - parts.amin(-1).clamp(max=0)).double() / (2**bits - 1)
    return span.unsqueeze(-1).expand(parts.shape).reshape(weight.shape[0], -1)[:, : weight.shape[1]]


@pytest.mark.parametrize("bits", range(2, 9))
def test_equation_36_is_equation_37_stretched(bits: int) -> None:
    x = np.linspace(-1, 1, 4001)
    x = x[np.abs((x + 1) / 2 * (2**bits - 1) % 1 - 0.5) > 1e-9]  # a tie goes either way in floating point
    np.testing.assert_allclose(equation_36(x, bits), 2 * equation_37((x + 1) / 2, bits) - 1, atol=2.0**-50 * 4001)


@pytest.mark.parametrize("bits", range(2, 9))
def test_rows_that_span_zero_to_one_agree_with_equation_37(bits: int) -> None:
    """On [0, 1] both have the levels i / (2^k - 1); only values within the rounding of the scale of a tie may differ by
    one level."""
    row = np.concatenate([[0.0, 1.0], np.random.default_rng(0).random(300)]).astype(np.float32)
    found = METHOD.pack(torch.from_numpy(row[None]), Uniform(bits=bits, group="row")).dense().numpy()[0]
    expected = equation_37(row.astype(np.float64), bits)
    levels = 2**bits - 1
    ties = np.abs((row * levels) % 1 - 0.5) <= levels * SCALE + 1e-6
    assert (np.abs(found - expected)[~ties] <= SCALE).all()
    assert (np.abs(found - expected) <= 1 / levels + SCALE).all()
    assert ties.mean() < 0.7


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("seed", range(3))
def test_near_the_reference_of_equations_38_and_39(bits: int, seed: int) -> None:
    """The zero point is a whole level here and is not there: the grids are shifted by at most half a step against each
    other, so that two nearest levels lie within a step and a half."""
    row = drawn(1, 200, seed=seed)
    found = METHOD.pack(row, Uniform(bits=bits, group="row")).dense().double().numpy()
    step = float(steps(row, bits, 200)[0, 0])
    largest = float(row.abs().max())
    assert np.abs(found - reference(row.double().numpy(), bits)).max() <= 1.5 * step + SCALE * largest


@pytest.mark.parametrize("group", [32, 64, 128, "row"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_error_levels_and_ends(bits: int, group: Any) -> None:
    """|w - w'| <= s/2, at the ends of the range at most s (the zero point is rounded), plus the rounding of the scale;
    at most 2^k levels per group, in equal steps; zero is one of them."""
    weight = drawn(7, 300, seed=bits)
    store = METHOD.pack(weight, Uniform(bits=bits, group=group))
    found, width = store.dense(), store.group
    error = (found.double() - weight.double()).abs()
    step = steps(weight, bits, width)
    assert bool((error <= step * (1 + SCALE) + SCALE * weight.double().abs()).all())
    inner = (store.codes.values > 0) & (store.codes.values < 2**bits - 1)
    assert bool((error <= step / 2 * (1 + SCALE) + 1e-7)[inner].all())
    scale = store.scale.values
    assert bool(((scale.double() - step[:, ::width][:, : scale.shape[1]]).abs() <= SCALE * scale.double()).all())
    for row in range(7):
        for g in range(scale.shape[1]):
            levels = found[row, g * width : (g + 1) * width].unique()
            assert levels.numel() <= 2**bits
            multiples = levels.double() / float(scale[row, g])
            assert bool((multiples - multiples.round()).abs().max() < 1e-4)


@pytest.mark.parametrize("bits", range(2, 9))
def test_both_ends_of_the_range_get_the_outer_codes(bits: int) -> None:
    weight = drawn(50, 64, seed=1)
    codes = METHOD.pack(weight, Uniform(bits=bits, group="row")).codes.values
    assert bool((codes.amax(1) - codes.amin(1) == 2**bits - 1).all())
    rows = torch.arange(50)
    assert torch.equal(codes[rows, weight.argmax(1)], codes.amax(1))
    assert torch.equal(codes[rows, weight.argmin(1)], codes.amin(1))


@given(
    arrays.arrays(
        np.float32, (3, 11), elements=st.floats(-1e3, 1e3, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3)
    ),
    st.integers(2, 8),
    st.booleans(),
    st.booleans(),
)
def test_packing_twice_is_packing_once_and_the_error_is_bounded(
    values: np.ndarray, bits: int, symmetric: bool, clip: bool
) -> None:
    weight = torch.from_numpy(values)
    point = Uniform(bits=bits, group="row", symmetric=symmetric, clip=clip)
    once = METHOD.pack(weight, point).dense()
    assert torch.equal(METHOD.pack(once, point).dense(), once)
    step = weight.abs().amax(1, True) / (2 ** (bits - 1) - 1) if symmetric else steps(weight, bits, 11)
    if not clip:
        assert bool(((once - weight).double().abs() <= step * (1 + SCALE) + SCALE * weight.abs().double()).all())


@pytest.mark.parametrize("columns", [33, 63, 65, 70, 100, 127, 129])
def test_the_last_group_of_a_ragged_row_is_a_group_of_its_own(columns: int) -> None:
    """Each group is quantised as if it stood alone: nothing of a group leaks into the next."""
    weight = drawn(5, columns) * torch.linspace(0.1, 10, columns)
    store = METHOD.pack(weight, Uniform(bits=3, group=32))
    for start in range(0, columns, 32):
        alone = METHOD.pack(weight[:, start : start + 32].contiguous(), Uniform(bits=3, group="row"))
        found = store.dense()[:, start : start + 32]
        torch.testing.assert_close(found, alone.dense(), rtol=2 * SCALE, atol=1e-6)
    groups = -(-columns // 32)
    bits = [3 * 5 * columns, 16 * 5 * groups, 3 * 5 * groups]
    assert store.nbytes() == sum(-(-b // 8) for b in bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_clipping_is_never_worse_and_somewhere_better(bits: int, symmetric: bool) -> None:
    weight = drawn(20, 128, seed=2).pow(3)
    plain, clipped = (
        METHOD.pack(weight, Uniform(bits=bits, symmetric=symmetric, clip=c)).dense() for c in (False, True)
    )
    per_group = [(d - weight).square().reshape(20, 2, 64).sum(-1) for d in (plain, clipped)]
    assert bool((per_group[1] <= per_group[0] * (1 + 1e-5) + 1e-12).all())
    if bits < 8:
        assert float(per_group[1].sum()) < float(per_group[0].sum())


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_codes(bits: int) -> None:
    """Levels -(h-1)..h-1 times s with h = 2^(bits-1): no zero point is stored, negating the weight negates the
    result."""
    weight = drawn(9, 70, seed=bits)
    point = Uniform(bits=bits, group="row", symmetric=True)
    store = METHOD.pack(weight, point)
    half = 2 ** (bits - 1)
    assert store.zero is None
    assert int((store.codes.values.int() - half).abs().max()) == half - 1
    assert torch.equal(METHOD.pack(-weight, point).dense(), -store.dense())
    step = weight.double().abs().amax(1, True) / (half - 1)
    assert bool(
        ((store.dense() - weight).double().abs() <= step / 2 * (1 + SCALE) + SCALE * weight.double().abs()).all()
    )


@pytest.mark.parametrize("value", [0.0, 0.3, -2.5, 1e-6, 1e6, -65504.0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_constant_tensor_is_reproduced(value: float, symmetric: bool) -> None:
    weight = torch.full((3, 40), value)
    found = METHOD.pack(weight, Uniform(bits=4, group="row", symmetric=symmetric)).dense()
    torch.testing.assert_close(found, weight, rtol=SCALE, atol=0)


def test_int8_is_uniform_at_8_bits_per_row() -> None:
    weight = drawn(6, 50)
    for symmetric in (True, False):
        found = Int8Quantisation().pack(weight, Int8(symmetric=symmetric))
        expected = METHOD.pack(weight, Uniform(bits=8, group="row", symmetric=symmetric))
        assert torch.equal(found.dense(), expected.dense())
        step = steps(weight, 8, 50) if not symmetric else weight.double().abs().amax(1, True) / 127
        bound = step * (0.5 if symmetric else 1) * (1 + SCALE) + SCALE * weight.double().abs()
        assert bool(((found.dense() - weight).double().abs() <= bound).all())


def test_an_integer_product_rescaled_is_the_product_of_what_the_codes_stand_for() -> None:
    weight, x = drawn(6, 50), drawn(4, 50, seed=9)
    w = Int8Quantisation().pack(weight, Int8())
    a = Int8Quantisation().pack(x, Int8())
    product = (a.codes.values.long() - 128) @ (w.codes.values.long() - 128).T
    rescaled = product.double() * a.scale.values.double() * w.scale.values.double().T
    torch.testing.assert_close(rescaled, a.dense().double() @ w.dense().double().T, rtol=1e-12, atol=1e-12)


def test_a_row_too_small_for_16_bit_scales_stays_finite() -> None:
    """Among ordinary rows, one of 1e-38 gets a scale of zero: it may become zeros, never NaN."""
    weight = torch.randn(4, 128)
    weight[2] *= 1e-38
    for symmetric in (False, True):
        dense = UniformQuantisation().pack(weight, Uniform(bits=4, symmetric=symmetric)).dense()
        assert bool(dense.isfinite().all())
        assert float(dense[2].abs().max()) < 1e-6
