"""The user's own metric: a function that takes the module and returns a number, larger is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

from torch import nn

from tersor.compiler.errors import RequestError
from tersor.models import imported, told

Function = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class Metric:
    """A named function; a result that is no finite number, or an exception, is a RequestError."""

    name: str
    function: Function

    def __call__(self, module: nn.Module) -> float:
        try:
            returned = self.function(module)
        except Exception as problem:  # noqa: BLE001 - the user's function may raise anything
            raise RequestError(f"the metric `{self.name}` raised {told(problem)}") from None
        try:
            value = float(returned)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # the last from a tensor of several values
            value = nan
        if not isfinite(value):
            raise RequestError(f"the metric `{self.name}` returned {returned!r:.80}; a finite number is expected")
        return value


def metric_named(name: str | None, given: Function | None) -> Metric:
    """The metric of a budget: `package.module:function`, or the one given to `compile`. Raises RequestError."""
    if name is not None:
        return Metric(name, imported(name, "the metric"))
    if given is None:
        raise RequestError(
            'the budget on `metric` names no function: write `budget metric "package.module:function" >= ...`, '
            "or give `metric=` in Python"
        )
    return Metric(getattr(given, "__name__", "metric"), given)
