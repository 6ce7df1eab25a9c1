"""The catalogue of ids, and what a policy is told that names a method this version does not have."""

from __future__ import annotations

import pytest

import tersor
from tersor.passes.catalogue import CATALOGUE


def test_every_method_has_its_name_from_the_catalogue() -> None:
    assert {method["id"] for method in tersor.methods()} <= set(CATALOGUE)
    assert len(set(CATALOGUE)) == len(CATALOGUE) == 164


@pytest.mark.parametrize("name", ["prune.structure.sensitivity", "structure.sensitivity", "quant.rq"])
def test_a_method_of_a_later_version_is_not_called_misspelt(name: str) -> None:
    with pytest.raises(tersor.PolicyError) as caught:
        tersor.Policy.parse(f"for linear choose {name}()")
    (problem,) = caught.value.diagnostics
    assert problem.code == "E103"
    assert "not available in this version" in problem.message
