"""Linears and norms that round their own result, against the plain steps and the rounding written with numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import FASTEST, IN_PAIRS, RUNNABLE, narrowed, random_matrix
from torch.nn import functional as F

from tersor.backends.numba.elementwise import Activation
from tersor.backends.numba.features import level_named
from tersor.backends.numba.fusedsteps import (
    multiply_round_step,
    needs_total,
    norm_round_step,
    rounds_itself,
    total_step,
)
from tersor.backends.numba.layout import AffineCodes, Layout, pack_bias, pack_codes, pack_groups, pack_shift
from tersor.backends.numba.quantiser import record_bytes
from tersor.backends.numba.reference import activate
from tersor.backends.numba.steps import Norm, multiply_step, norm_step, quantise_step, rounded_bytes, run_now

GELU = 7.4e-5  # of |x|: the polynomial's bound


@dataclass(frozen=True)
class Rounded:
    """What lies in q and the records of `rows` rows."""

    codes: np.ndarray
    start: np.ndarray
    scale: np.ndarray
    weighted: np.ndarray

    def values(self, group: int) -> np.ndarray:
        return self.codes * np.repeat(self.scale.astype(np.float64), group, 1)


def empty(size: int) -> torch.Tensor:
    """Bytes that a kernel has to overwrite, and some that it must leave alone."""
    return torch.full((size + 64,), 0x55, dtype=torch.uint8)


def read(q: torch.Tensor, records: torch.Tensor, layout: Layout, rows: int) -> Rounded:
    groups = layout.groups
    assert bool((q[rows * layout.padded :] == 0x55).all()), "codes beyond the last row were written"
    assert bool((records[rows * record_bytes(groups) :] == 0x55).all()), "records beyond the last row were written"
    codes = q[: rows * layout.padded].numpy().view(np.int8).reshape(rows, layout.padded)
    lines = records[: rows * record_bytes(groups)].numpy().reshape(rows, -1)
    parts = [np.ascontiguousarray(lines[:, 4 * i * groups : 4 * (i + 1) * groups]) for i in range(3)]
    return Rounded(codes, parts[0].view(np.int32), parts[1].view(np.float32), parts[2].view(np.float32))


def totals(records: torch.Tensor, layout: Layout, rows: int) -> np.ndarray:
    """The last entry of every record."""
    lines = records[: rows * record_bytes(layout.groups)].numpy().reshape(rows, -1)
    return np.ascontiguousarray(lines[:, -4:]).view(np.float32)[:, 0]


def rounded(z: torch.Tensor, group: int) -> Rounded:
    """Nearest of 255 levels of the largest of each group, in float32 as the kernels do it."""
    parts = z.numpy().reshape(z.shape[0], -1, group)
    peak = np.abs(parts).max(-1)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
    codes = np.rint(parts * inverse[..., None]).astype(np.int8)
    count = codes.astype(np.int32).sum(-1)
    scale = (peak / np.float32(127)).astype(np.float32)
    return Rounded(codes.reshape(z.shape), -128 * count, scale, scale * count.astype(np.float32))


def assert_equal(actual: Rounded, wanted: Rounded) -> None:
    for name in ("codes", "start", "scale", "weighted"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(wanted, name), err_msg=name)


def through_linear(
    level: str, rows: int, layout: Layout, reader: Layout, activation: Activation, seed: int, narrow: int = 0
) -> tuple[Rounded, torch.Tensor]:
    """(what the fused step leaves, the floats before the activation)."""
    matrix = random_matrix(layout.rows, layout.columns, layout.width, layout.weight_group, layout.shifted, seed)
    if narrow:
        matrix = narrowed(matrix, narrow)
    held = AffineCodes(matrix.codes, matrix.scale, matrix.zero, layout.width, layout.weight_group)
    described = level_named(level)
    shift = pack_shift(held, layout, described)
    assert matrix.bias is not None
    packed = (
        pack_codes(held.codes, layout, described),
        pack_groups(held.scale, layout, described),
        torch.zeros(1) if shift is None else shift,
        pack_bias(matrix.bias, layout, described),
    )
    weights = tuple(tensor.data_ptr() for tensor in packed)
    x = torch.randn(rows, layout.columns, generator=torch.Generator().manual_seed(seed)) * 3
    x[rows // 2] = 0
    q, records = (empty(size) for size in rounded_bytes(layout, rows))
    y = torch.empty(rows, layout.rows)
    out, out_records = (empty(size) for size in rounded_bytes(reader, rows))
    given = (q.data_ptr(), records.data_ptr())
    result = (out.data_ptr(), out_records.data_ptr())
    steps = (
        quantise_step(level, layout, rows, x.data_ptr(), 4 * layout.columns, *given),
        multiply_step(level, layout, "none", rows, given, weights, y.data_ptr()),  # type: ignore[arg-type]
        multiply_round_step(level, layout, reader, activation, rows, given, weights, result),  # type: ignore[arg-type]
    )
    run_now(level, steps)
    return read(out, out_records, reader, rows), y


@settings(max_examples=30, deadline=None)
@given(
    level=st.sampled_from(RUNNABLE),
    rows=st.integers(1, 40),
    groups=st.integers(1, 3),
    group=st.sampled_from([64, 128]),
    width=st.sampled_from([4, 8]),
    columns=st.integers(1, 200),
    seed=st.integers(0, 1000),
)
def test_a_linear_rounds_what_it_would_store(
    level: str, rows: int, groups: int, group: int, width: int, columns: int, seed: int
) -> None:
    layout = Layout(groups * group, columns, width, 64 if width == 4 else 0, 64, False)
    reader = Layout(10, groups * group, 4, group, group, True)
    assert rounds_itself(level, layout, reader)
    actual, y = through_linear(level, rows, layout, reader, "none", seed)
    assert_equal(actual, rounded(y, group))


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize("room", [1, 2])
@pytest.mark.parametrize("group", [0, 64])
@pytest.mark.parametrize("rows", [1, 7, 130])
def test_a_linear_of_narrow_codes_does_too(level: str, room: int, group: int, rows: int) -> None:
    layout, reader = Layout(128, 200, 8, 0, group, room=room * (level in IN_PAIRS)), Layout(10, 128, 8, 0, 64)
    actual, y = through_linear(level, rows, layout, reader, "none", rows, narrow=room)
    assert_equal(actual, rounded(y, 64))
    # Those of the kernel for any codes.
    ordinary, wanted = through_linear(level, rows, replace(layout, room=0), reader, "none", rows, narrow=room)
    assert torch.equal(y, wanted)
    assert_equal(actual, ordinary)


@pytest.mark.parametrize("rows", [1, 7, 130])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_with_an_activation(activation: Activation, rows: int) -> None:
    layout, reader = Layout(192, 96, 8, 0, 64), Layout(10, 192, 8, 0, 64)
    actual, y = through_linear(FASTEST, rows, layout, reader, activation, 0)
    wanted = activate(y.double(), activation).numpy()
    allowed = np.repeat(actual.scale, 64, 1) * 0.5001 + (GELU if activation == "gelu" else 3e-7) * np.abs(y.numpy())
    assert (np.abs(actual.values(64) - wanted) <= allowed + 1e-6).all()


def test_short_gelu_keeps_its_bound() -> None:
    """One input through an identity; the reader's scale is the largest result, so that the step is known."""
    layout, reader = Layout(64, 1, 8, 0, 32), Layout(10, 64, 8, 0, 64)
    described = level_named(FASTEST)
    values = torch.cat([torch.linspace(-6, 6, 241), torch.linspace(-0.1, 0.1, 21)])
    packed = (
        pack_codes(torch.full((64, 1), 129, dtype=torch.uint8), layout, described),
        pack_groups(torch.ones(64, 1), layout, described),
        torch.zeros(1),
        pack_bias(None, layout, described),
    )
    rows = len(values)
    q, records = (empty(size) for size in rounded_bytes(layout, rows))
    out, out_records = (empty(size) for size in rounded_bytes(reader, rows))
    given, result = (q.data_ptr(), records.data_ptr()), (out.data_ptr(), out_records.data_ptr())
    weights = tuple(tensor.data_ptr() for tensor in packed)
    steps = (
        quantise_step(FASTEST, layout, rows, values.data_ptr(), 4, *given),
        multiply_round_step(FASTEST, layout, reader, "gelu", rows, given, weights, result),  # type: ignore[arg-type]
    )
    run_now(FASTEST, steps)
    actual = read(out, out_records, reader, rows)
    wanted = F.gelu(values.double()).numpy()
    # All 64 outputs are equal, so that the code is +-127 and its value the result itself, a few roundings apart.
    assert (np.abs(actual.values(64)[:, 0] - wanted) <= (GELU + 1e-6) * np.abs(values.numpy())).all()


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize("group", [0, 64])
@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("root", [False, True])
def test_a_norm_rounds_what_it_stores_and_keeps_the_sum(level: str, group: int, other: bool, root: bool) -> None:
    rows, columns = 37, 192
    reader = Layout(10, columns, 8, 0, group, True)
    x, more, weight, bias = (
        torch.randn(rows, columns),
        torch.randn(5, columns),
        torch.randn(columns),
        torch.randn(columns),
    )
    x[3] = 1.5  # a row without variance
    plain, fused, total = torch.empty(rows, columns), torch.empty(rows, columns), torch.zeros(rows, columns)
    q, records = (empty(size) for size in rounded_bytes(reader, rows))
    given = (x.data_ptr(), more.data_ptr() if other else 0, 5, weight.data_ptr(), 0 if root else bias.data_ptr())
    norm = Norm((rows, columns), *given, total.data_ptr(), fused.data_ptr(), 1e-5, root)
    alone = replace(norm, z=plain.data_ptr(), y=plain.data_ptr())
    steps = (norm_step(level, alone), norm_round_step(level, norm, reader, (q.data_ptr(), records.data_ptr())))
    run_now(level, steps)
    assert torch.equal(fused, plain)
    z = x + more.repeat(8, 1)[:rows] if other else x
    assert torch.equal(total, z if other else torch.zeros(rows, columns))
    functional = F.rms_norm if root else partial(F.layer_norm, bias=bias.double())
    exact = functional(z.double(), (columns,), weight=weight.double(), eps=1e-5)
    torch.testing.assert_close(fused.double(), exact, rtol=1e-5, atol=1e-5)
    wanted = rounded(plain, reader.group)
    assert_equal(read(q, records, reader, rows), wanted)
    np.testing.assert_allclose(totals(records, reader, rows), wanted.weighted.sum(1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("level", RUNNABLE)
def test_totals(level: str) -> None:
    rows, reader = 5, Layout(10, 192, 8, 0, 64, True)
    assert needs_total(reader)
    assert not needs_total(Layout(10, 192, 8, 64, 64, True))
    _, records = (empty(size) for size in rounded_bytes(reader, rows))
    lines = records[: rows * record_bytes(3)].view(torch.float32).view(rows, -1)
    lines.copy_(torch.randn(lines.shape))
    before = lines.clone()
    run_now(level, (total_step(level, reader, rows, records.data_ptr()),))
    assert torch.equal(lines[:, :-1], before[:, :-1])
    torch.testing.assert_close(lines[:, -1], before[:, 6:9].sum(1))
    assert bool((records[rows * record_bytes(3) :] == 0x55).all())


def test_nan_makes_the_scale() -> None:
    columns = 128
    reader = Layout(10, columns, 8, 0, 64)
    x = torch.randn(3, columns)
    x[1, 5] = torch.nan
    y, weight, bias = torch.empty(3, columns), torch.ones(columns), torch.zeros(columns)
    q, records = (empty(size) for size in rounded_bytes(reader, 3))
    result = y.data_ptr()
    norm = Norm((3, columns), x.data_ptr(), 0, 1, weight.data_ptr(), bias.data_ptr(), result, result, 1e-5)
    run_now(FASTEST, (norm_round_step(FASTEST, norm, reader, (q.data_ptr(), records.data_ptr())),))
    assert np.isnan(read(q, records, reader, 3).scale).all(1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "reader",
    [
        Layout(10, 128, 8),  # one scale a row
        Layout(10, 96, 8, 0, 32),  # other columns
        Layout(10, 128, 8, 0, 96),  # a partial group
    ],
)
def test_what_a_linear_cannot_round(reader: Layout) -> None:
    assert not rounds_itself(FASTEST, Layout(128, 64, 8, 0, 64), reader)
