"""What is searched without a policy of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tersor
from tersor.backend import BackendName
from tersor.backends.numba.features import ENVIRONMENT, LEVELS, Level, supported
from tersor.original import captured
from tersor.spaces import default_space

EXAMPLE = {"input": torch.randn(4, 128)}
RUNNABLE = [level for level in LEVELS if supported(level)]


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 96))


@pytest.mark.parametrize("level", RUNNABLE, ids=lambda level: level.name)
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("backend", ["auto", "numba", "eager"])
def test_codes_of_short_sums_are_offered_to_linears_where_kernels_add_in_pairs(
    level: Level, calibrated: bool, backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, level.name)
    space = default_space(captured(model(), EXAMPLE), calibrated, backend)
    wanted = level.name in ("avx2", "avx512") and backend != "eager"
    assert ("accumulator = 16" in space.to_text()) == wanted
    assert tersor.Policy.parse(space.to_text()) == space


@pytest.mark.parametrize("level", RUNNABLE, ids=lambda level: level.name)
def test_a_search_offers_them(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, level.name)
    found = tersor.search(model().eval(), EXAMPLE, [EXAMPLE], size="40%")
    assert ("accumulator = 16" in found.searcher.policy.to_text()) == (level.name in ("avx2", "avx512"))
    assert found.missed is None
