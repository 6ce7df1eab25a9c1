"""Attention in 16-bit integers against torch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import FASTEST, RUNNABLE, WIDTHS, error

from tersor.backends.numba.attention16steps import AttentionShape, Rows, attention16_step, takes_width
from tersor.backends.numba.native.values import Operand
from tersor.backends.numba.steps import attention_tile, run_now

# Of the largest value. Scores: width / 4095 of the largest product, itself a few units here, and errors of both signs;
# weights: 6.4e-5 each; values: half of 1 / 2047.
TOLERANCE = 2e-3


def rows(x: torch.Tensor) -> Rows:
    return Rows(x.data_ptr(), 4 * x.stride(1), 4 * x.stride(0))


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    level: str = FASTEST,
    scale: float = 0.2,
) -> torch.Tensor:
    """q (batch, queries, heads * width), k and v (batch, keys, kv heads * width), mask (batch, queries, keys)."""
    width = q.shape[2] // heads
    shape = AttentionShape(q.shape[0], q.shape[1], k.shape[1], heads, width, heads * width // k.shape[2])
    y = torch.full_like(q, 7.0, memory_format=torch.contiguous_format)
    factor = torch.tensor(scale)
    address: Operand = 0
    stride = 0
    if mask is not None:
        tile = attention_tile(level)
        turned = torch.zeros(mask.shape[0], mask.shape[2], -(-mask.shape[1] // tile) * tile)
        turned[:, :, : mask.shape[1]] = mask.mT
        address, stride = turned.data_ptr(), 4 * turned.stride(0)
    step = attention16_step(level, shape, [rows(x) for x in (q, k, v, y)], factor.data_ptr(), address, stride, causal)
    run_now(level, (step,))
    return y


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: torch.Tensor | None, causal: bool, scale: float
) -> torch.Tensor:
    """Written out; a row without a visible key is 0."""
    width = q.shape[2] // heads
    q, k, v = (x.double().unflatten(-1, (-1, width)).transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    scores = scale * q @ k.mT
    if mask is not None:
        scores = scores + mask.double()[:, None]
    if causal:
        queries, keys = scores.shape[-2:]
        seen = torch.arange(keys) <= torch.arange(queries)[:, None] + keys - queries
        scores = scores.masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1).nan_to_num(0.0) @ v).transpose(1, 2).flatten(2)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 70),
    keys=st.integers(1, 140),
    groups=st.integers(1, 2),
    shared=st.integers(1, 2),
    width=st.sampled_from([32, 64, 128]),
    masked=st.booleans(),
    causal=st.booleans(),
    level=st.sampled_from(RUNNABLE),
    seed=st.integers(0, 1000),
)
def test_agrees_with_its_equation(
    batch: int, queries: int, keys: int, groups: int, shared: int, width: int, masked: bool, causal: bool, level: str,
    seed: int,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def normal(tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(batch, tokens, heads * width, generator=generator) * 2

    heads = groups * shared
    q, k, v = normal(queries, heads), normal(keys, groups), normal(keys, groups)
    mask = None
    if masked:
        mask = torch.zeros(batch, queries, keys)
        mask[torch.rand(mask.shape, generator=generator) < 0.4] = -torch.inf
    scale = width**-0.5 / 2
    actual = attend(q, k, v, heads, mask, causal, level, scale)
    assert error(actual, reference(q, k, v, heads, mask, causal, scale).numpy()) < TOLERANCE


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("level", WIDTHS)
def test_extremes_do_not_overflow(level: str, sign: float) -> None:
    """Every product at its largest, over the widest head and more keys than are summed in integers."""
    ones = torch.full((1, 300, 128), 3.0)
    y = attend(ones, ones * sign, ones * sign, 1, level=level)
    assert float((y - 3.0 * sign).abs().max()) < 1e-5


def test_an_outlying_column_does_not_drown_the_others() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 50, 64) for _ in range(3))
    k[..., 3] *= 100
    q[..., 3] /= 100
    v[..., 5] *= 1000
    y, wanted = attend(q, k, v, 2), reference(q, k, v, 2, None, False, 0.2)
    assert float(((y - wanted).abs() / wanted.abs().amax(1, keepdim=True)).max()) < TOLERANCE


@pytest.mark.parametrize("level", WIDTHS)
def test_a_query_that_sees_nothing_gets_zero(level: str) -> None:
    q, k, v = (torch.randn(1, 5, 64) for _ in range(3))
    mask = torch.zeros(1, 5, 5)
    mask[0, 2] = -torch.inf
    y = attend(q, k, v, 2, mask, level=level)
    assert not y[0, 2].any()
    assert not attend(q, k[:, :3], v[:, :3], 2, causal=True, level=level)[0, :2].any()


def test_nan_reaches_the_output() -> None:
    q, k, v = (torch.randn(1, 5, 64) for _ in range(3))
    q[0, 1, 3] = torch.nan
    assert attend(q, k, v, 1)[0].isfinite().all(-1).tolist() == [True, False, True, True, True]
    v[0, 2, 7] = torch.inf
    finite = attend(torch.randn(1, 5, 64), k, v, 1)[0].isfinite()
    assert finite.all(0).tolist() == [d != 7 for d in range(64)]
    k[0, 4, 1] = torch.nan
    assert not attend(torch.randn(1, 5, 64), k, v.nan_to_num(0, 0, 0), 1).isfinite().any()


def test_hidden_keys_are_not_read() -> None:
    """With causal attention no query of the first tile sees what lies behind the tile."""
    q, k, v = (torch.randn(1, 96, 64) for _ in range(3))
    tile = attention_tile(FASTEST)
    first = attend(q, k, v, 2, causal=True)[:, :tile]
    alone = attend(q[:, :tile], k[:, :tile], v[:, :tile], 2, causal=True)
    assert error(first, alone.numpy()) < TOLERANCE


def test_threads_change_nothing() -> None:
    q, k, v = (torch.randn(2, 128, 4 * 32) for _ in range(3))
    alone = attend(q, k, v, 4)
    torch.set_num_threads(3)
    try:
        assert torch.equal(attend(q, k, v, 4), alone)
    finally:
        torch.set_num_threads(1)


def test_widths() -> None:
    tile = attention_tile(FASTEST)
    assert takes_width(FASTEST, tile)
    assert not takes_width(FASTEST, tile + 8)  # part of a tile
    assert not takes_width(FASTEST, 256)  # sums could overflow
