"""Predictions against a machine whose law is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.compiler.forecast import Forecast

costs = st.floats(1e-4, 1e-1)


@given(costs, st.floats(0, 1), st.floats(0.6, 1.9))
def test_one_artifact_finds_the_rest_and_many_the_scale(first: float, rest: float, scale: float) -> None:
    one = Forecast().after(first, rest + scale * first)
    assert one.real(first) == pytest.approx(rest + scale * first)
    many = Forecast()
    for i in range(40):
        x = first * (1 + i % 2)
        many = many.after(x, rest + scale * x)
    assert many.scale == pytest.approx(scale, abs=0.1 * abs(scale - 1) + 1e-6)


@given(st.lists(st.tuples(costs, costs), min_size=1, max_size=5), costs)
def test_costs_undo_real_and_the_latest_artifact_is_met(seen: list[tuple[float, float]], value: float) -> None:
    forecast = Forecast(tuple(seen))
    assert forecast.real(forecast.costs(value)) == pytest.approx(value, abs=1e-12)
    assert forecast.real(seen[-1][0]) == pytest.approx(seen[-1][1])
    assert 0.5 <= forecast.scale <= 2


def test_noise_does_not_become_a_scale() -> None:
    """Artifacts of nearly the same costs say nothing of the scale, whatever the noise."""
    noisy = Forecast(((0.010, 0.020), (0.0101, 0.022), (0.0102, 0.019)))
    assert noisy.scale == pytest.approx(1, abs=0.1)


def test_choices_that_would_take_longer_than_all_of_an_artifact_take_less_than_they_seem_to() -> None:
    forecast = Forecast().after(0.020, 0.016)
    assert forecast.rest == pytest.approx(0)
    assert forecast.real(0.015) == pytest.approx(0.012)
