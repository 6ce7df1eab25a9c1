"""A plan written as a policy decides every site as the plan does."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import captured as zoo_programs
from tests.optimise.models import batches, tiny
from torch import Tensor

import tersor
from tersor.compiler.policy import selects
from tersor.compiler.report import SearchReport
from tersor.dsl import format_policy
from tersor.original import captured
from tersor.written import selecting


@pytest.mark.parametrize("name", ["bert", "gpt2", "lstm_tied"])
@given(data=st.data())
def test_a_selector_names_exactly_the_sites(name: str, data: st.DataObject) -> None:
    program = zoo_programs.captured(name)[2]
    sites = [site for site in program.sites if site.kind != "attention"]
    wanted = data.draw(st.lists(st.sampled_from(sites), min_size=1, unique_by=lambda s: s.name))
    selector = selecting(wanted, sites)
    assert {s.name for s in sites if selects(selector, s)} == {s.name for s in wanted}


def test_the_policy_found_gives_the_same_plan_and_is_canonical() -> None:
    model, example = tiny()
    found = tersor.search(model, example, batches(), size="25 kB")
    assert found.missed is None
    assert found.result.plan.bytes <= 25_000
    again = tersor.compile(model, tersor.Policy.parse(found.policy), example, batches())
    assert again.plan.bytes == found.result.plan.bytes
    assert not again.plan.diff(found.result.plan)
    assert format_policy(found.policy, "found") == found.policy
    assert found.policy.count("# ") >= len(found.policy.split("\nfor ")) - 1
    assert SearchReport.from_json(found.report.to_json() | {}) == found.report


@pytest.mark.parametrize("data", [batches(), None])
def test_the_front_falls_and_has_the_chosen_point(data: list[Mapping[str, Tensor]] | None) -> None:
    model, example = tiny()
    points = tersor.search(model, example, data, size="25 kB").front
    (chosen,) = [p for p in points if p.chosen]
    assert chosen.bytes <= 25_000
    assert [p.bytes for p in points] == sorted({p.bytes for p in points})
    assert all(after.damage < before.damage for before, after in pairwise(points))


def test_a_plan_of_its_own_for_the_size_of_a_point_is_that_point() -> None:
    """Where damage is known without measuring, which would tell more of the choices of one of the two."""
    model, example = tiny()
    points = tersor.search(model, example, size="25 kB").front
    for point, share in product(points[len(points) // 3 :: len(points) // 3], (0.98, 1.02)):
        direct = tersor.plan(
            model,
            tersor.Policy.parse(
                f"budget size <= {share * point.bytes:.0f} B\n"
                "for linear or norm or bias or embedding choose half()\n"
                "for (embedding or linear) where params >= 4096 "
                "choose uniform(bits = 2..8, group = row)\n"
            ),
            example,
        )
        assert (
            (direct.damage >= point.damage * (1 - 1e-4)) if share < 1 else (direct.damage <= point.damage * (1 + 1e-4))
        )


def test_the_same_inputs_give_the_same_plan() -> None:
    model, example = tiny()
    one, two = (tersor.search(model, example, batches(), size="22 kB") for _ in range(2))
    assert one.policy == two.policy
    assert captured(model, example).sites
