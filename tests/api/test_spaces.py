"""What is searched without a policy of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tersor
from tersor.backend import adds_in_pairs
from tersor.backends.numba.features import ENVIRONMENT, LEVELS, Level, supported
from tersor.compiler.errors import RequestError
from tersor.original import captured
from tersor.spaces import default_space

EXAMPLE = {"input": torch.randn(4, 128)}
RUNNABLE = [level for level in LEVELS if supported(level)]


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 96))


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("in_pairs", [False, True])
def test_codes_of_short_sums_are_offered_to_linears_where_kernels_add_in_pairs(
    calibrated: bool, in_pairs: bool
) -> None:
    space = default_space(captured(model(), EXAMPLE), calibrated, in_pairs)
    assert ("accumulator = 16" in space.to_text()) == in_pairs
    assert tersor.Policy.parse(space.to_text()) == space


@pytest.mark.parametrize("level", RUNNABLE, ids=lambda level: level.name)
def test_what_adds_in_pairs_is_that_of_this_processor(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, level.name)
    assert adds_in_pairs("auto") == adds_in_pairs("numba") == (level.name in ("avx2", "avx512"))
    assert not adds_in_pairs("eager")
    with pytest.raises(RequestError, match="no backend `gpu`"):
        adds_in_pairs("gpu")  # type: ignore[arg-type]


@pytest.mark.parametrize("level", RUNNABLE, ids=lambda level: level.name)
def test_a_search_offers_them(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, level.name)
    found = tersor.search(model().eval(), EXAMPLE, [EXAMPLE], size="40%")
    assert ("accumulator = 16" in found.searcher.policy.to_text()) == adds_in_pairs("auto")
    assert found.missed is None
