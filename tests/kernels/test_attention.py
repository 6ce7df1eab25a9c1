"""Attention over one joined projection against torch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_oracle import FASTEST, WIDTHS, error

from tersor.backends.numba import ops


def reference(joined: torch.Tensor, mask: torch.Tensor | None, heads: int, width: int, scale: float) -> torch.Tensor:
    """softmax(scale q k^T + mask) v, written out; a row without a visible key is 0."""
    batch, tokens, _ = joined.shape
    q, k, v = joined.double().view(batch, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)
    scores = scale * q @ k.mT
    if mask is not None:
        scores = scores + mask.double()
    weights = scores.softmax(-1).nan_to_num(0.0)
    return (weights @ v).permute(0, 2, 1, 3).reshape(batch, tokens, heads * width)


@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 70),
    heads=st.integers(1, 3),
    width=st.sampled_from([16, 32, 40, 64]),
    masked=st.booleans(),
    level=st.sampled_from(WIDTHS),
)
def test_agrees_with_its_equation(batch: int, tokens: int, heads: int, width: int, masked: bool, level: str) -> None:
    joined = torch.randn(batch, tokens, 3 * heads * width) * 2
    mask = None
    if masked:
        mask = torch.zeros(batch, 1, tokens, tokens).masked_fill(torch.rand(batch, 1, tokens, tokens) < 0.4, -torch.inf)
        mask[..., 0] = 0  # torch's answer for a row that sees nothing differs between versions: tested below
    actual = ops.attention(joined, mask, heads, width, 0.2, level)
    assert error(actual, reference(joined, mask, heads, width, 0.2).numpy()) < 1e-5


@pytest.mark.parametrize("level", WIDTHS)
def test_a_query_that_sees_nothing_gets_zero(level: str) -> None:
    joined = torch.randn(1, 5, 3 * 32)
    mask = torch.zeros(1, 1, 5, 5)
    mask[0, 0, 2] = -torch.inf
    y = ops.attention(joined, mask, 1, 32, 0.2, level)
    assert not y[0, 2].any()
    assert error(y, reference(joined, mask, 1, 32, 0.2).numpy()) < 1e-5


def test_nan_reaches_the_output() -> None:
    joined = torch.randn(1, 5, 3 * 32)
    joined[0, 1, 3] = torch.nan  # in a query
    y = ops.attention(joined, None, 1, 32, 0.2, FASTEST)
    assert y.isfinite().all(-1).tolist() == [[True, False, True, True, True]]


def test_threads_change_nothing() -> None:
    joined = torch.randn(2, 128, 3 * 4 * 32)
    alone = ops.attention(joined, None, 4, 32, 0.2, FASTEST)
    torch.set_num_threads(3)
    try:
        assert torch.equal(ops.attention(joined, None, 4, 32, 0.2, FASTEST), alone)
    finally:
        torch.set_num_threads(1)


def test_contract_and_gradient() -> None:
    joined = torch.randn(2, 7, 3 * 2 * 32, requires_grad=True)
    mask = torch.zeros(2, 1, 7, 7)
    torch.library.opcheck(ops.attention, (joined, mask, 2, 32, 0.2, FASTEST))
    (actual,) = torch.autograd.grad(ops.attention(joined, mask, 2, 32, 0.2, FASTEST).square().sum(), joined)
    (wanted,) = torch.autograd.grad(reference(joined, mask, 2, 32, 0.2).square().sum(), joined)
    torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)
