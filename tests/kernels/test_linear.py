"""A quantised linear against exact integer arithmetic, at every CPU level this machine runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import (
    FASTEST,
    IN_PAIRS,
    RUNNABLE,
    WIDTHS,
    Matrix,
    error,
    expected,
    narrowed,
    random_matrix,
)

from tersor.backends.numba.linear import QuantizedLinear
from tersor.backends.numba.reference import activate
from tersor.compiler.errors import RequestError

# About 200 float32 roundings of 2^-24 on sums of like magnitude.
TOLERANCE = 1e-5

levels = pytest.mark.parametrize("level", RUNNABLE)


def activations(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    """Normal values, one row of extremes only, one of zeros, and an outlier."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    if rows > 2:
        x[0] = torch.where(x[0] > 0, 2.5, -2.5)
        x[1] = 0
        x[2, columns // 2] = 50
    return x


KINDS = [(0, 0), (0, 64), (64, 64), (32, 0)]


@pytest.mark.parametrize(
    ("level", "bits", "group", "activation_group"),
    [(FASTEST, bits, *kind) for bits in (8, 7, 6, 5, 4, 2) for kind in KINDS]
    + [(level, *case) for level in RUNNABLE[1:] for case in ((8, 0, 0), (8, 0, 64), (4, 64, 64), (2, 0, 0))],
)
def test_agrees_with_integers(level: str, bits: int, group: int, activation_group: int) -> None:
    matrix = random_matrix(70, 200, bits, group)
    module = matrix.module(activation_group=activation_group, level=level)
    assert module.level == level
    for count in (16, 40):  # packed codes are unpacked for every tile, or expanded once
        x = activations(count, 200)
        assert error(module(x), expected(matrix, x, activation_group)) < TOLERANCE


@levels
@pytest.mark.parametrize("bits", [2, 4, 5, 6, 7, 8])
def test_extreme_codes_do_not_saturate(level: str, bits: int) -> None:
    """The largest code times 127 in every place: sums of too many such products in 16 bits would saturate, of 8 bits
    two. All sums are exact integers here.
    """
    rows, columns, center = 17, 256, 1 << (bits - 1)
    for code in (0, (1 << bits) - 1):
        codes = torch.full((rows, columns), code, dtype=torch.uint8)
        module = QuantizedLinear.from_codes(
            codes, torch.ones(rows, 1), torch.full((rows, 1), float(center)), bits, activation_group=0, level=level
        )
        assert module.shift is None
        for count in (1, 3, 40):  # the last with codes expanded to bytes
            for sign in (1, -1):
                x = torch.full((count, columns), 127.0 * sign)
                assert torch.equal(module(x), torch.full((count, rows), float((code - center) * 127 * sign * columns)))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 150),
    columns=st.integers(1, 300),
    bits=st.integers(1, 8),
    group=st.sampled_from([0, 32, 64, 128]),
    activation_group=st.sampled_from([0, 32, 64, 128]),
    count=st.sampled_from([1, 2, 3, 7, 16, 33, 40]),
    shifted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_width_and_group(
    rows: int, columns: int, bits: int, group: int, activation_group: int, count: int, shifted: bool, seed: int
) -> None:
    matrix = random_matrix(rows, columns, bits, group, shifted, seed)
    x = activations(count, columns, seed)
    module = matrix.module(activation_group=activation_group)
    assert error(module(x), expected(matrix, x, activation_group)) < TOLERANCE
    np.testing.assert_allclose(module.dense().double().numpy(), matrix.dense(), rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    level=st.sampled_from(RUNNABLE),
    rows=st.integers(1, 70),
    columns=st.integers(1, 300),
    case=st.sampled_from([(8, 1), (8, 2), (7, 2)]),
    groups=st.sampled_from([*KINDS, (64, 32), (128, 128)]),
    count=st.sampled_from([0, 1, 2, 3, 7, 16, 40]),
    seed=st.integers(0, 1000),
)
def test_narrow_codes_of_any_shape_and_group(
    level: str, rows: int, columns: int, case: tuple[int, int], groups: tuple[int, int], count: int, seed: int
) -> None:
    bits, room = case
    matrix = narrowed(random_matrix(rows, columns, bits, groups[0], False, seed), room)
    module = matrix.module(activation_group=groups[1], level=level)
    assert module.layout.room >= room if level in IN_PAIRS else module.layout.room == 0
    x = activations(count, columns, seed)
    assert error(module(x), expected(matrix, x, groups[1])) < TOLERANCE
    np.testing.assert_allclose(module.dense().double().numpy(), matrix.dense(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize(("bits", "room"), [(8, 1), (8, 2), (7, 2)])
@pytest.mark.parametrize("activation_group", [0, 64])
def test_the_largest_sums_that_fit_are_exact(level: str, bits: int, room: int, activation_group: int) -> None:
    """Weights of one sign that add up to 128 in every sum of 16 bits, and activations of +-127 in every place: exact
    integers. One more and the matrix is not taken for narrow."""
    columns, center = 256, 1 << (bits - 1)
    most = min(center - 1, 128 // room - 1)
    pattern = torch.tensor([most, 128 // room - most, most, 128 // room - most]).repeat(columns // 4)
    weights = torch.stack([pattern, -pattern] * 9)
    for more in (0, 1):
        weights[3, 0] -= more
        codes = (weights + center).to(torch.uint8)
        module = QuantizedLinear.from_codes(
            codes, torch.ones(18, 1), torch.full((18, 1), float(center)), bits,
            activation_group=activation_group, level=level,
        )  # fmt: skip
        fitting = room - more if bits == 8 else 2 - 2 * more
        assert module.layout.room == (fitting if level in IN_PAIRS else 0)
        for count in (1, 3, 40):
            for x in (torch.full((count, columns), 127.0), 127.0 * weights[3].sign().expand(count, columns)):
                assert torch.equal(module(x), (x.double() @ weights.double().T).float())


@pytest.mark.parametrize("activation_group", [0, 32])
def test_a_row_does_not_depend_on_its_neighbours(activation_group: int) -> None:
    module = random_matrix(100, 384, 8).module(activation_group=activation_group)
    x = activations(33, 384)
    alone = torch.cat([module(row[None]) for row in x])
    assert torch.equal(module(x), alone)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("level", WIDTHS)
def test_fused_activation(level: str, activation: str) -> None:
    matrix = random_matrix(67, 96, 8)
    x = activations(5, 96) * 4
    wanted = activate(torch.from_numpy(expected(matrix, x, 0)), activation)
    actual = matrix.module(activation=activation, activation_group=0, level=level)(x)
    # The share of GELU is within 2.3e-7, times |x|.
    assert error(actual, wanted.numpy()) < TOLERANCE


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activation_values(activation: str) -> None:
    """Through an identity of one input: z is exactly the value that the row's scale represents."""
    values = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-80.0, 80.0, 0.0])])
    module = QuantizedLinear.from_codes(
        torch.full((1, 1), 129, dtype=torch.uint8), torch.ones(1, 1), torch.full((1, 1), 128.0), 8,
        activation=activation, activation_group=0,
    )  # fmt: skip
    wanted = activate(values.double(), activation)
    difference = (module(values[:, None])[:, 0] - wanted).abs()
    assert float((difference / values.abs().clamp_min(1)).max()) < 5e-7


@pytest.mark.parametrize("shape", [(96,), (3, 96), (2, 3, 96), (2, 1, 3, 96), (0, 96), (2, 0, 96)])
def test_input_ranks(shape: tuple[int, ...]) -> None:
    matrix = random_matrix(20, 96, 8)
    x = torch.randn(shape)
    y = matrix.module()(x)
    assert y.shape == (*shape[:-1], 20)
    wanted = expected(matrix, x.reshape(-1, 96), 64)
    assert error(y.reshape(-1, 20), wanted) < TOLERANCE or x.numel() == 0


def test_strided_inputs() -> None:
    module = random_matrix(20, 96, 8).module()
    wide = torch.randn(5, 192)
    for x in (wide[:, :96], wide[:, ::2], torch.randn(96, 5).T, torch.randn(1, 96).expand(4, 96)):
        assert torch.equal(module(x), module(x.contiguous()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_are_converted(dtype: torch.dtype) -> None:
    module = random_matrix(20, 96, 8).module()
    x = torch.randn(4, 96).to(dtype)
    y = module(x)
    assert y.dtype == dtype
    assert torch.equal(y, module(x.float()).to(dtype))


def test_nan_and_infinity_reach_the_output() -> None:
    module = random_matrix(20, 96, 8).module(activation_group=0)
    x = torch.randn(3, 96)
    x[0, 5], x[1, 5] = torch.nan, torch.inf
    finite = module(x).isfinite().all(1)
    assert finite.tolist() == [False, False, True]


@pytest.mark.parametrize("narrow", [False, True])
def test_many_rows_and_long_rows(narrow: bool) -> None:
    """More rows than a block holds, and rows so long that a block is small."""
    for rows, columns, count in ((10, 4096, 150), (70, 20000, 30)):
        matrix = random_matrix(rows, columns, 8, shifted=not narrow)
        matrix = narrowed(matrix, 1) if narrow else matrix
        x = activations(count, columns)
        assert error(matrix.module(activation_group=0)(x), expected(matrix, x, 0)) < TOLERANCE


def test_holds_packed_tensors_only() -> None:
    module = random_matrix(128, 256, 4, 64, shifted=False).module()
    held = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    assert held == 128 * 256 // 2 + 128 * 4 * 4 + 128 * 4
    assert not list(module.parameters())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 9}, "1 to 8"),
        ({"group": 48}, "multiples of 32"),
        ({"activation_group": 96, "group": 64}, "divide"),
        ({"scale": torch.ones(3, 1)}, "scale has shape"),
        ({"bias": torch.ones(3)}, "bias has shape"),
        ({"bits": 4}, "a code is"),
        ({"activation": "tanh"}, "no activation"),
        ({"codes": torch.ones(4, 64)}, "uint8"),
    ],
)
def test_refusals(change: dict[str, object], said: str) -> None:
    options = {
        "codes": torch.full((4, 64), 200, dtype=torch.uint8),
        "scale": torch.ones(4, 1),
        "zero": torch.ones(4, 1),
        "bits": 8,
    }
    with pytest.raises(RequestError, match=said):
        QuantizedLinear.from_codes(**(options | change))  # type: ignore[arg-type]


def test_wrong_input_width() -> None:
    with pytest.raises(RequestError, match="96 inputs"):
        random_matrix(20, 96, 8).module()(torch.randn(2, 95))


def test_without_bias() -> None:
    matrix = random_matrix(20, 96, 8)
    matrix = Matrix(matrix.codes, matrix.scale, matrix.zero, None, 8, 0)
    x = activations(4, 96)
    assert error(matrix.module(activation_group=32)(x), expected(matrix, x, 32)) < TOLERANCE
