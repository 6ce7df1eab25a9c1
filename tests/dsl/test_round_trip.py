"""Text and meaning are one: what is written reads back equal, and `fmt` changes neither meaning nor comments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tersor.compiler.errors import RequestError
from tersor.compiler.method import Method
from tersor.compiler.policy import (
    PROPERTIES,
    TEXT_PROPERTIES,
    And,
    Budget,
    Call,
    Everything,
    InPath,
    Named,
    Not,
    Objective,
    OfKind,
    OfRole,
    One,
    OneOf,
    Option,
    Or,
    Policy,
    Range,
    Recover,
    Rule,
    Selector,
    Share,
    Term,
    Use,
    Where,
)
from tersor.compiler.site import KINDS
from tersor.dsl import format_policy, parse_policy, write_policy
from tersor.dsl.tokens import GRAMMAR

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8) | st.sampled_from(
    ["true", "all", "for", "row", "MB", "4"]
)
segments = st.text('abcxyz_*?[]\\" \n0', min_size=1, max_size=5)
globs = st.lists(segments, min_size=1, max_size=3).map(".".join)
names = st.sampled_from(["edge", "first", "x1", "UPPER", "a_b"])
shares = st.floats(0.001, 1.0).map(Share)
whole = st.integers(-(10**20), 10**20)
numbers = st.floats(allow_nan=False, allow_infinity=False)


def one_of(points: st.SearchStrategy[Any]) -> st.SearchStrategy[OneOf]:
    unique = st.lists(points, min_size=1, max_size=4, unique_by=lambda p: (type(p), p))
    return unique.map(lambda values: OneOf(tuple(values)))


@st.composite
def ranges(draw: st.DrawFn, low: int, high: int) -> Range:
    first, last = sorted((draw(st.integers(low, high)), draw(st.integers(low, high))))
    return Range(first, last, draw(st.none() | st.integers(1, 5)))


@st.composite
def share_ranges(draw: st.DrawFn) -> Range:
    first, last = sorted((draw(shares).fraction, draw(shares).fraction))
    return Range(Share(first), Share(last), draw(st.none() | st.floats(0.01, 1).map(Share)))


def spaces(points: st.SearchStrategy[Any], *more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(points.map(One), one_of(points), *more)


def a_use(method: str, optional: tuple[str, ...] = (), **parameters: st.SearchStrategy[Any]) -> st.SearchStrategy[Use]:
    must = {name: space for name, space in parameters.items() if name not in optional}
    may = {name: space for name, space in parameters.items() if name in optional}
    return st.fixed_dictionaries(must, optional=may).map(lambda given: Use(method, tuple(given.items())))


groups = st.integers(1, 10**6) | st.just("row")
uses = st.one_of(
    a_use(
        "quant.uniform",
        ("group", "symmetric"),
        bits=spaces(st.integers(2, 8), ranges(2, 8)),
        group=spaces(groups),
        symmetric=spaces(st.booleans()),
    ),
    a_use("decomp.svd", rank=spaces(shares | st.floats(0.01, 1.0), share_ranges())),
    a_use("quant.kmeans.static", ("seed",), bits=ranges(1, 12), seed=spaces(whole)),
    st.just(Use("quant.half")),
)
points = st.one_of(st.booleans(), whole, numbers, texts, shares)
calls = st.builds(Call, st.sampled_from(["every", "first"]), st.lists(points, max_size=2).map(tuple))
losses = st.builds(
    Use,
    st.sampled_from(["hidden", "my.loss"]),
    st.lists(spaces(points | calls), max_size=1).map(lambda s: (("map", *s),) if s else ()),
)
options = st.lists(uses, min_size=1, max_size=3).map(lambda u: Option(tuple(u)))


def selectors(lets: Mapping[str, Selector]) -> st.SearchStrategy[Selector]:
    numeric = sorted(set(PROPERTIES) - TEXT_PROPERTIES)
    orders: Any = st.sampled_from(["<", "<=", "==", "!=", ">=", ">"])
    equals: Any = st.sampled_from(["==", "!="])
    leaves = [
        st.just(Everything()),
        st.sampled_from(KINDS).map(OfKind),
        globs.map(OfRole),
        st.sampled_from(["attention.*", "**", "*", "*.q", "ffn"]).map(OfRole),
        globs.map(InPath),
        st.builds(Where, st.sampled_from(numeric), orders, whole | numbers),
        st.builds(Where, st.sampled_from(sorted(TEXT_PROPERTIES)), equals, texts),
    ]
    if lets:
        leaves.append(st.sampled_from(sorted(lets)).map(lambda name: Named(name, lets[name])))

    def join(inner: st.SearchStrategy[Selector]) -> st.SearchStrategy[Selector]:
        return st.one_of(st.builds(And, inner, inner), st.builds(Or, inner, inner), st.builds(Not, inner))

    return st.recursive(st.one_of(leaves), join, max_leaves=8)


budgets = st.fixed_dictionaries(
    {},
    optional={
        "size": st.builds(Budget, st.just("size"), st.floats(1e-3, 1e15), st.booleans()),
        "memory": st.builds(Budget, st.just("memory"), st.integers(1, 10**13).map(float)),
        "latency": st.builds(
            Budget,
            st.just("latency"),
            st.floats(1e-9, 1e4),
            st.just(False),
            st.sampled_from([(), (("batch", 3),), (("tokens", 1), ("cached", 8))]),
        ),
        "metric": st.builds(
            Budget,
            st.just("metric"),
            st.floats(-1e6, 1e6),
            st.booleans(),
            st.just(()),
            st.sampled_from([None, "a.b:c"]),
        ),
    },
).map(lambda found: tuple(found.values()))
objectives = st.sampled_from(
    [
        Objective(),
        Objective("size"),
        Objective("latency"),
        Objective("metric", "maximize"),
        Objective("metric", "maximize", "a.b:c"),
    ]
)
recoveries = st.builds(
    Recover,
    st.none() | texts,
    st.lists(st.builds(Term, st.floats(1e-9, 1e9), losses), max_size=3).map(tuple),
    st.fixed_dictionaries(
        {}, optional={"steps": st.integers(1, 10**9), "lr": st.floats(1e-12, 1), "schedule": texts}
    ).map(lambda found: tuple(found.items())),
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    lets: dict[str, Selector] = {}
    for name in draw(st.lists(names, unique=True, max_size=2)):
        lets[name] = draw(selectors(lets))
    rule = st.builds(Rule, selectors(lets), st.lists(options, max_size=3).map(tuple))
    rules = tuple(draw(st.lists(rule, min_size=1, max_size=4)))
    return Policy(draw(budgets), draw(objectives), tuple(lets.items()), rules, draw(st.none() | recoveries))


few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@few
@given(policy=policies())
def test_what_is_written_reads_back_equal(policy: Policy, methods: Mapping[str, Method[Any]]) -> None:
    text = write_policy(policy)
    assert repr(parse_policy(text, methods)) == repr(policy)  # by repr: 1, 1.0 and True are equal but not the same
    assert format_policy(text) == text


@few
@given(policy=policies(), data=st.data())
def test_fmt_keeps_meaning_and_comments(
    policy: Policy, data: st.DataObject, methods: Mapping[str, Method[Any]]
) -> None:
    """Tokens of a written policy, spaced and commented at random, are laid out again: same meaning, same comments."""
    random = data.draw(st.randoms(use_true_random=False))
    messy = "\n"
    last = None
    for count, token in enumerate(GRAMMAR.lex(write_policy(policy))):
        new_statement = token.line != last and token.column == 1 and token != "}"
        if new_statement:
            messy += "\n" * random.randint(1, 3)
        elif token.type not in ("WORD", "BUDGET", "KEEP", "UNIT") and random.random() < 0.3:
            messy += random.choice(["\n    ", "   ", f" # note {count}\n  ", f"\n\n # alone {count}  \n\t", "\r\n "])
        else:
            messy += random.choice([" ", "  ", "\t"])
        messy += token
        last = token.end_line
    neat = format_policy(messy)
    assert parse_policy(neat, methods) == policy
    assert format_policy(neat) == neat
    assert comments_of(neat) == comments_of(messy)
    assert all(line == line.rstrip(" \t\r") for line in neat.split("\n"))


def comments_of(text: str) -> list[str]:
    return [token.rstrip() for token in GRAMMAR.lex(text) if token.type == "COMMENT"]


def test_the_example(example: str, parse: Callable[..., Policy]) -> None:
    policy = parse(example)
    assert parse(write_policy(policy)) == policy
    assert parse(format_policy(example)) == policy
    assert comments_of(format_policy(example)) == comments_of(example)


def test_fmt_layout() -> None:
    text = """\
# top


#second
budget   size<=12MB#why
let a=linear   # trailing
  # alone
  or(norm)and not   bias
for a choose uniform(bits={2,  4},group=row)or svd(rank=25 % .. 75%  step 5%)then uniform(bits=8) or
 uniform(bits=8) or half() then uniform(bits = {2, 3, 4, 5, 6, 7, 8}, group = {32, 64, 96, 128, 256}, symmetric = true)
recover{teacher original # keep
 loss 0.9*soft_targets()+hidden(map=every( 2 ))

 # how long
 steps 20 lr 1e-4
 # end
}
# last
"""
    assert (
        format_policy(text)
        == """\
# top

#second
budget size <= 12 MB  #why
let a = linear  # trailing
  # alone
  or (norm) and not bias
for a
  choose uniform(bits = {2, 4}, group = row)
  or svd(rank = 25%..75% step 5%) then uniform(bits = 8)
  or uniform(bits = 8)
  or half()
    then uniform(bits = {2, 3, 4, 5, 6, 7, 8}, group = {32, 64, 96, 128, 256}, symmetric = true)
recover {
  teacher original  # keep
  loss 0.9 * soft_targets() + hidden(map = every(2))
  # how long
  steps 20
  lr 1e-4
  # end
}
# last
"""
    )


def test_what_has_no_text_is_refused() -> None:
    with pytest.raises(RequestError, match="no `let` of that name"):
        write_policy(Policy(rules=(Rule(Named("edge", Everything())),)))
    with pytest.raises(RequestError, match="cannot be written as a name"):
        write_policy(Policy(rules=(Rule(OfKind("two words")),)))
