"""Captured zoo models, each captured once per run; lets the tests here import `zoo`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

Captured = tuple[nn.Module, dict[str, Tensor], "Program"]

from zoo import ZOO  # noqa: E402

from tersor.compiler.capture import capture  # noqa: E402
from tersor.compiler.program import Program  # noqa: E402


@functools.cache
def _captured(name: str) -> Captured:
    model, example = ZOO[name]()
    return model, example, capture(model, example)


@pytest.fixture
def captured() -> Callable[[str], Captured]:
    """`captured(name)` is (model, example, program); the program has parameters of its own."""
    return _captured
