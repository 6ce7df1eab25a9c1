"""A user's metric that is no metric: each error names the function and what it did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tersor.compiler.errors import RequestError
from tersor.metric import metric_named


def no_labels(module: nn.Module) -> float:
    raise ValueError("no labels at hand")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_labels, "`no_labels` raised ValueError: no labels at hand"),
        (lambda module: "good", "returned 'good'; a finite number is expected"),
        (lambda module: None, "returned None; a finite number is expected"),
        (lambda module: float("nan"), "returned nan; a finite number is expected"),
        (lambda module: torch.ones(2), "a finite number is expected"),
    ],
)
def test_a_metric_must_return_a_number(function: Callable[[nn.Module], object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        metric_named(None, function)(nn.Identity())


def test_a_tensor_of_one_value_is_a_number() -> None:
    assert metric_named(None, lambda module: torch.tensor([0.5]))(nn.Identity()) == 0.5


def test_a_budget_on_a_metric_needs_a_function() -> None:
    with pytest.raises(RequestError, match="names no function"):
        metric_named(None, None)
