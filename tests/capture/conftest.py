"""Captured zoo models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.captured import Captured
from tests.captured import captured as captured_once


@pytest.fixture
def captured() -> Callable[[str], Captured]:
    """`captured(name)` is (model, example, program); the program has parameters of its own."""
    return captured_once
