"""The text of a step is a policy for that very step: no digit of a parameter is lost, and no two points share a
text."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.laws.cases import STEPS

from tersor.compiler.candidate import Candidate, Step, percent
from tersor.compiler.method import Method, Params
from tersor.compiler.resolve import candidates_of
from tersor.dsl import parse_policy
from tersor.passes import METHODS

BY_ID = {method.id: method for method in METHODS}


def read_back(text: str) -> list[Candidate]:
    """What a policy that says no more than this text would try."""
    ((option,),) = [rule.options for rule in parse_policy(f"for all choose {text}", BY_ID).rules]
    return list(candidates_of(option, (0, 0), BY_ID))


def same(a: Params, b: Params) -> bool:
    """Equal, and of the same types: rank 1 is one component, rank 1.0 all of them."""
    return repr(a) == repr(b)


@st.composite
def points(draw: st.DrawFn, method: Method[Any]) -> Params:
    """Points drawn from what the parameters say about themselves, not from the examples."""
    values = {}
    for name, field in method.Params.model_fields.items():
        annotation = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation  # type: ignore[index]
        values[name] = draw(
            st.from_type(annotation) | st.floats(0, 1) if field.annotation == int | float else st.from_type(annotation)
        )
    try:
        return method.Params(**values)
    except ValidationError:
        assume(False)
        raise


@pytest.mark.parametrize("step", STEPS, ids=lambda s: s.text)
def test_the_text_of_an_example_reads_back(step: Step) -> None:
    (found,) = read_back(step.text)
    assert [s.method.id for s in found.steps] == [step.method.id]
    assert same(found.steps[0].point, step.point)


few = settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])


@pytest.mark.parametrize("method", METHODS, ids=list(BY_ID))
@few
@given(data=st.data())
def test_any_point_reads_back_from_its_text(method: Method[Any], data: st.DataObject) -> None:
    point = data.draw(points(method))
    (found,) = read_back(Step(method, point).text)
    assert same(found.steps[0].point, point)


@few
@given(data=st.data())
def test_a_chain_reads_back_from_its_text(data: st.DataObject) -> None:
    methods = data.draw(st.lists(st.sampled_from(METHODS), min_size=2, max_size=3))
    steps = tuple(Step(method, data.draw(points(method))) for method in methods)
    (found,) = read_back(Candidate(steps, (0, 0)).text)
    assert [s.method.id for s in found.steps] == [s.method.id for s in steps]
    assert all(same(a.point, b.point) for a, b in zip(found.steps, steps, strict=True))


@given(a=st.floats(0, 1), b=st.floats(0, 1))
@example(a=1 / 3, b=0.333333)
@example(a=0.1 + 0.2, b=0.3)
@example(a=5e-324, b=0.0)
def test_shares_have_a_text_each(a: float, b: float) -> None:
    assert (percent(a) == percent(b)) == (a == b)


def test_shares_people_write_are_shown_as_written() -> None:
    assert [percent(n / 100) for n in range(101)] == [f"{n}%" for n in range(101)]
    assert percent(0.125) == "12.5%"
