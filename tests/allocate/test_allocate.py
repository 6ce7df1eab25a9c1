"""The allocation against trying every combination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.compiler.allocate import Allocation, Infeasible, allocate, undominated
from tersor.compiler.candidate import Candidate, Step
from tersor.compiler.measure.price import Choice, Shared
from tersor.passes.prune.magnitude import ClassBlind, Magnitude

Choices = Mapping[str, Sequence[Choice]]
SLACK = 1e-4
"""The solver stops within 1e-5 of its bound, and the weight of the bytes may cost 1e-6 a site."""


def joint(sparsity: float) -> Candidate:
    """A candidate that the sites of its rule take together."""
    return Candidate((Step(ClassBlind(), Magnitude(sparsity=sparsity)),), (0, 0))


def combinations(choices: Choices) -> list[tuple[Choice, ...]]:
    """Every way to give each site one of its choices, joint ones everywhere or nowhere."""
    holders: dict[str, set[str]] = {}
    for site in choices.values():
        for c in site:
            if c.candidate is not None:
                holders.setdefault(c.candidate.text, set()).add(c.site)
    found = []
    for taken in product(*choices.values()):
        users: dict[str, set[str]] = {}
        for c in taken:
            if c.candidate is not None:
                users.setdefault(c.candidate.text, set()).add(c.site)
        if all(users[text] == holders[text] for text in users):
            found.append(taken)
    return found


def total(taken: Sequence[Choice]) -> tuple[float, int]:
    return sum(c.damage for c in taken), sum(c.bytes for c in taken)


@st.composite
def instances(draw: st.DrawFn) -> Choices:
    sites = [f"s{i}" for i in range(draw(st.integers(1, 4)))]
    sizes, damages = st.integers(1, 10_000), st.integers(0, 1000).map(lambda n: n / 64)
    choices = {
        s: [Choice(s, None, draw(sizes), draw(damages), 0.0) for _ in range(draw(st.integers(1, 3)))] for s in sites
    }
    together = draw(st.lists(st.sampled_from(sites), unique=True, max_size=4))
    for sparsity in draw(st.sampled_from([(), (0.5,), (0.5, 0.9)])):
        for s in together:
            choices[s].append(Choice(s, joint(sparsity), draw(sizes), draw(damages), 0.0))
    return choices


@given(instances(), st.floats(0, 1.2))
def test_equals_trying_everything(choices: Choices, share: float) -> None:
    every = [total(taken) for taken in combinations(choices)]
    least, most = min(b for _, b in every), max(b for _, b in every)
    budget = least - 2 + share * (most - least + 4)
    found = allocate(choices, {"size": budget})
    within = [(d, b) for d, b in every if b <= budget]
    if not within:
        assert isinstance(found, Infeasible)
        assert found.quantity == "size"
        assert found.least == least
        assert sum(c.bytes for c in found.chosen.values()) == least
        assert [c.bytes for c in found.largest] == sorted((c.bytes for c in found.chosen.values()), reverse=True)
        return
    assert isinstance(found, Allocation)
    taken = tuple(found.chosen[s] for s in choices)
    assert taken in combinations(choices)
    assert (found.damage, found.bytes) == pytest.approx(total(taken))
    assert found.bytes <= budget + 1e-6
    best = min(within)[0]
    assert best - 1e-9 <= found.damage <= best * (1 + SLACK) + SLACK
    assert found.bound is not None
    assert found.bound <= found.damage + 1e-9
    assert found.bound <= best * (1 + 1e-9) + SLACK
    assert found.bound >= best * (1 - SLACK) - SLACK


@given(instances())
def test_the_least_size_equals_trying_everything(choices: Choices) -> None:
    found = allocate(choices, {}, "size")
    assert isinstance(found, Allocation)
    assert found.bytes == min(b for _, b in map(total, combinations(choices)))
    assert found.bound is None  # nothing is known of the least damage


@given(instances())
def test_without_a_budget_the_least_damage_is_taken(choices: Choices) -> None:
    found = allocate(choices, {})
    assert isinstance(found, Allocation)
    assert found.damage <= min(d for d, _ in map(total, combinations(choices))) + SLACK


def test_of_equal_damage_the_smaller_wins() -> None:
    single = {"a": [Choice("a", None, 900, 1.0, 0.0), Choice("a", None, 300, 1.0, 0.0)]}
    found = allocate(single, {"size": 1000})
    assert isinstance(found, Allocation)
    assert found.bytes == 300
    both = {s: [Choice(s, None, 500, 1.0, 0.0), Choice(s, joint(0.5), 200, 1.0, 0.0)] for s in "ab"}
    found = allocate(both, {"size": 2000})
    assert isinstance(found, Allocation)
    assert found.bytes == 400


def test_bytes_never_buy_damage() -> None:
    """A hundredfold smaller choice is not worth a thousandth more damage."""
    choices = {"a": [Choice("a", None, 10**8, 1.0, 0.0), Choice("a", None, 10**6, 1.001, 0.0)]}
    choices |= {"b": [Choice("b", None, 10**9, 1e-4, 0.0), Choice("b", None, 10, 1.1e-4, 0.0)]}
    found = allocate(choices, {})
    assert isinstance(found, Allocation)
    assert found.damage == pytest.approx(1.0001)


@pytest.mark.parametrize("over", range(-3, 4))
def test_the_budget_holds_to_the_byte(over: int) -> None:
    """At megabytes too, where the solver's own tolerance is some bytes: it may cost an allocation that fills those,
    never the budget."""
    choices = {
        s: [Choice(s, None, 7_000_003 + i, 1.0, 0.0), Choice(s, None, 3_000_001, 2.0 + i, 0.0)]
        for i, s in enumerate("abcd")
    }
    budget = 7_000_003 + 7_000_006 + 2 * 3_000_001 + over
    found = allocate(choices, {"size": budget})
    assert isinstance(found, Allocation)
    assert found.bytes <= budget
    every = [total(taken) for taken in combinations(choices)]
    assert min(d for d, b in every if b <= budget) <= found.damage <= min(d for d, b in every if b <= budget - 20)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=12))
def test_what_is_left_out_is_never_better(pairs: list[tuple[int, int]]) -> None:
    choices = [Choice("a", None, b, float(d), 0.0) for b, d in pairs]
    front = list(undominated(choices))
    assert [c.bytes for c in front] == sorted({c.bytes for c in front})
    for c in choices:
        assert any(f.bytes <= c.bytes and f.damage <= c.damage for f in front)
    for a, b in product(front, front):
        assert a is b or a.bytes > b.bytes or a.damage > b.damage


def costs_of(taken: Sequence[Choice], quantity: str) -> float:
    """With what several share counted once."""
    parts = [c.shared for c in taken if c.shared]
    once = {part.key: part.costs.get(quantity, 0.0) for part in parts}
    return sum(c.cost(quantity) for c in taken) - sum(once[part.key] for part in parts) + sum(once.values())


@st.composite
def timed_instances(draw: st.DrawFn) -> Choices:
    """With seconds at two shapes, of which choices may share a part."""
    times = st.integers(1, 100).map(float)

    def drawn() -> dict[str, float]:
        return {"short": draw(times), "long": draw(times)}

    parts = [None, *(Shared(key, drawn()) for key in draw(st.sampled_from(["", "x", "xy"])))]

    def timed(choice: Choice) -> Choice:
        part, own = draw(st.sampled_from(parts)), drawn()
        costs = {name: own[name] + (part.costs[name] if part else 0.0) for name in own}
        return replace(choice, costs=costs, shared=part)

    return {site: [timed(c) for c in found] for site, found in draw(instances()).items()}


@given(timed_instances(), st.data())
def test_several_limits_equal_trying_everything(timed: Choices, data: st.DataObject) -> None:
    """Seconds at two shapes and bytes together; what cannot be met says what would do, and that does."""
    every = combinations(timed)
    limits = {}
    for quantity in ("size", "short", "long"):
        values = sorted(costs_of(taken, quantity) for taken in every)
        limits[quantity] = values[int(data.draw(st.floats(0, 1)) * (len(values) - 1))] - data.draw(
            st.sampled_from([0, 1])
        )
    within = [taken for taken in every if all(costs_of(taken, q) <= limit for q, limit in limits.items())]
    found = allocate(timed, limits)
    if within:
        assert isinstance(found, Allocation)
        assert all(found.total(q) <= limit for q, limit in limits.items())
        best = min(costs_of(taken, "damage") for taken in within)
        assert best - 1e-9 <= found.damage <= best * (1 + SLACK) + SLACK
        fastest = allocate(timed, limits, "short")
        assert isinstance(fastest, Allocation)
        assert fastest.total("short") == min(costs_of(taken, "short") for taken in within)
        return
    assert isinstance(found, Infeasible)
    others = {q: limit for q, limit in limits.items() if q != found.quantity} if found.conflict else {}
    fitting = [taken for taken in every if all(costs_of(taken, q) <= limit for q, limit in others.items())]
    if fitting:
        assert found.least == min(costs_of(taken, found.quantity) for taken in fitting)
    for quantity, least in ({found.quantity: found.least} | dict(found.instead)).items():
        if found.conflict and found.instead:
            assert isinstance(allocate(timed, limits | {quantity: least}), Allocation)


def test_what_is_slower_alone_may_be_faster_in_company() -> None:
    quick = Choice("a", None, 100, 1.0, 0.0, {"time": 5.0}, Shared("x", {"time": 1.0}))
    other = replace(quick, costs={"time": 6.0}, shared=Shared("y", {"time": 4.0}))
    company = replace(other, site="b")
    assert list(undominated([quick, other])) == [quick, other]
    found = allocate({"a": [quick, other], "b": [company]}, {"time": 8.0})
    assert isinstance(found, Allocation)
    assert found.chosen["a"] is other
    assert found.total("time") == 8.0
    alone = allocate({"a": [quick, other]}, {}, "time")
    assert isinstance(alone, Allocation)
    assert alone.chosen["a"] is quick


def test_of_equal_damage_and_bytes_the_faster_and_then_the_simpler_wins() -> None:
    slow, fast = (Choice("a", None, 100, 1.0, 0.0, {"time": t}) for t in (2.0, 1.0))
    found = allocate({"a": [slow, fast]}, {"time": 5})
    assert isinstance(found, Allocation)
    assert found.chosen["a"] is fast
    step = joint(0.5).steps[0]
    one, two = (Choice("a", Candidate((step,) * n, (0, n)), 100, 1.0, 0.0) for n in (1, 2))
    found = allocate({"a": [two, one]}, {})
    assert isinstance(found, Allocation)
    assert found.chosen["a"] is one
