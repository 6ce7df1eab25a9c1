"""What each part of a policy means, checked against meanings written by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tersor.compiler.diagnostics import PolicyError
from tersor.compiler.policy import (
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
    glob_matches,
)
from tersor.dsl import write_policy

Parse = Callable[..., Policy]
LINEAR, NORM, BIAS = OfKind("linear"), OfKind("norm"), OfKind("bias")


def uniform(**spaces: object) -> Use:
    return Use("quant.uniform", tuple(spaces.items()))  # type: ignore[arg-type]


def test_the_example_whole(parse: Parse, example: str) -> None:
    edge = Or(And(LINEAR, InPath("encoder.layer.0.**")), And(LINEAR, InPath("encoder.layer.5.**")))
    assert parse(example) == Policy(
        budgets=(Budget("size", 12e6), Budget("latency", 0.008, at=(("batch", 1), ("tokens", 128)))),
        objective=Objective("damage"),
        lets=(("edge", edge),),
        rules=(
            Rule(
                OfKind("embedding"),
                (
                    Option((Use("quant.kmeans.static", (("bits", Range(3, 6)),)),)),
                    Option((uniform(bits=OneOf((4, 8)), group=One("row")),)),
                ),
            ),
            Rule(
                OfRole("attention.*"),
                (
                    Option((uniform(bits=Range(2, 8), group=OneOf((32, 64))),)),
                    Option((Use("decomp.svd", (("rank", Range(Share(0.25), Share(0.75))),)), uniform(bits=One(8)))),
                ),
            ),
            Rule(
                And(OfKind("neurons"), OfRole("ffn")),
                (Option((Use("prune.structure.sensitivity", (("rank", Range(Share(0.4), Share(1.0))),)),)),),
            ),
            Rule(Named("edge", edge), (Option((uniform(bits=One(8)),)),)),
            Rule(And(LINEAR, Where("out_features", "<", 64))),
        ),
        recover=Recover(
            "original",
            (
                Term(0.9, Use("kd.soft_targets", (("temperature", One(2)),))),
                Term(0.1, Use("hidden", (("map", One(Call("every", (2,)))),))),
            ),
            (("steps", 2000),),
        ),
    )


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("size <= 20%", Budget("size", 0.2, share=True)),
        ("size<=1.5kB", Budget("size", 1500.0)),
        ("memory <= 200 MiB", Budget("memory", 200 * 2.0**20)),
        ("memory <= 1 GiB at tokens = 512", Budget("memory", 2.0**30, at=(("tokens", 512),))),
        ("size <= 1 GB", Budget("size", 1e9)),
        ("size <= 2 KiB", Budget("size", 2048.0)),
        ("size <= 7 B", Budget("size", 7.0)),
        ("latency <= 8 ms", Budget("latency", 0.008)),
        ("latency <= 250us", Budget("latency", 0.00025)),
        ("latency <= 0.5 s", Budget("latency", 0.5)),
        ("metric >= 0.86", Budget("metric", 0.86)),
        ("metric >= 98%", Budget("metric", 0.98, share=True)),
        ('metric "a.b:c" >= -1.5', Budget("metric", -1.5, metric="a.b:c")),
    ],
)
def test_budgets(text: str, budget: Budget, parse: Parse) -> None:
    assert parse(f"budget {text}").budgets == (budget,)


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("all", Everything()),
        ("layer", OfKind("layers")),
        ("linear or norm and bias", Or(LINEAR, And(NORM, BIAS))),
        ("(linear or norm) and bias", And(Or(LINEAR, NORM), BIAS)),
        ("linear or norm or bias", Or(Or(LINEAR, NORM), BIAS)),
        ("not linear and norm", And(Not(LINEAR), NORM)),
        ("not not linear", Not(Not(LINEAR))),
        ("not (linear role ffn)", Not(And(LINEAR, OfRole("ffn")))),
        ("linear role ffn or norm", Or(And(LINEAR, OfRole("ffn")), NORM)),
        ('linear\n  in "a\\"b\\\\c"', And(LINEAR, InPath('a"b\\c'))),
        ("role attention.*", OfRole("attention.*")),
        ("role **.query", OfRole("**.query")),
        ("role *", OfRole("*")),
        ("role *.q?", OfRole("*.q?")),
        ('role "ffn[12]"', OfRole("ffn[12]")),
        ("where bytes > 1.5 MB", Where("bytes", ">", 1_500_000)),
        ("where kind != norm", Where("kind", "!=", "norm")),
        ('where path == "a.b" and where uses >= 2', And(Where("path", "==", "a.b"), Where("uses", ">=", 2))),
        ("where out_features < 64 role ffn", And(Where("out_features", "<", 64), OfRole("ffn"))),
    ],
)
def test_selectors(text: str, selector: Selector, parse: Parse) -> None:
    assert parse(f"keep {text}").rules == (Rule(selector),)


def test_a_keyword_may_be_a_parameter_on_a_line_of_its_own(parse: Parse) -> None:
    policy = parse("for linear choose prune.magnitude(\nkeep = {50%, 0.25},\nblock = 2..6 step 2)\nkeep norm")
    spaces = (("keep", OneOf((Share(0.5), 0.25))), ("block", Range(2, 6, 2)))
    assert policy.rules[0].options == (Option((Use("prune.magnitude", spaces),)),)
    assert len(policy.rules) == 2


def test_a_method_without_parameters_needs_no_brackets(parse: Parse) -> None:
    assert parse("for linear choose half").rules == parse("for linear choose quant.half()").rules


def test_spans_tell_where_each_part_stands(parse: Parse) -> None:
    text = "keep norm\nfor not linear and role ffn choose uniform(bits = 4) or half then half"
    rule = parse(text).rules[1]

    def said(part: object) -> str:
        span = part.span  # type: ignore[attr-defined]
        return str(span.source.text[span.start : span.end])

    assert said(rule) == text.partition("\n")[2]
    assert said(rule.selector) == "not linear and role ffn"
    assert isinstance(rule.selector, And)
    assert [said(rule.selector.left), said(rule.selector.right)] == ["not linear", "role ffn"]
    assert [said(option) for option in rule.options] == ["uniform(bits = 4)", "half then half"]
    assert [said(use) for use in rule.options[1].uses] == ["half", "half"]


def test_values_of_a_text_are_told_from_numbers_and_truth_values(parse: Parse) -> None:
    text = 'for all choose uniform(bits = 4, group = "row", symmetric = true)'
    (use,) = parse(text).rules[0].options[0].uses
    assert use == uniform(bits=One(4), group=One("row"), symmetric=One(True))
    with pytest.raises(PolicyError):
        parse('for all choose uniform(bits = 4, symmetric = "true")')


def test_the_least_policy_writes_its_defaults(parse: Parse) -> None:
    assert write_policy(parse("keep all")) == "minimize damage\n\nkeep all\n"


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("layer.1", "layer.1", True),
        ("layer.1", "layer.10", False),
        ("layer.?", "layer.1", True),
        ("**", "a.b.c", True),
        ("**.c", "a.b.c", True),
        ("a.**.c", "a.c", True),
        ("a.**.**.c", "a.b.c", True),
        ("a.**.b.**.d", "a.x.b.c", False),
        ("a.*.c", "a.b.b.c", False),
        ("a.b", "a.b.c", False),
        ("a.**", "b", False),
    ],
)
def test_globs_match_whole_segments(glob: str, path: str, expected: bool) -> None:
    assert glob_matches(glob, path) is expected


def test_a_glob_of_many_double_stars_is_quick() -> None:
    assert not glob_matches(".".join(["**", "a"] * 30), ".".join(["a"] * 29))
