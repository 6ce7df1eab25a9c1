"""Whatever is in a policy file, the answer is a policy or a `PolicyError`, in bounded time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.compiler.diagnostics import PolicyError
from tersor.compiler.method import Method
from tersor.compiler.policy import Policy
from tersor.dsl import CODES, format_policy, parse_policy, read_policy

Methods = Mapping[str, Method[Any]]
KEYWORDS = "budget minimize maximize let for choose keep recover or and not all role in where then step at teacher loss"
NAMES = "size latency metric damage a b linear norm edge uniform half kd.soft_targets bits group true row MB ms"
SIGNS = "4 8 12 0.5 -1 25 1e999 % * ( ) { } = == <= >= < , .. + # ; \x00 é . !"
QUOTED = ['"x"', '"a.**"', '"\\q"', '"', "attention.*", "**", "\n"]
soup = st.lists(st.sampled_from(f"{KEYWORDS} {NAMES} {SIGNS}".split(" ") + QUOTED), max_size=40).map(" ".join)
lines = st.lists(soup.map(lambda t: t.replace("\n", " ")), max_size=6).map("\n".join)
many = settings(max_examples=100, deadline=None)


def check(refused: PolicyError) -> None:
    """A refusal names known codes, and can be shown."""
    assert refused.diagnostics
    assert all(d.code in CODES and d.line() and d.render() for d in refused.diagnostics)


def answer(text: str, methods: Methods) -> Policy | None:
    try:
        policy = parse_policy(text, methods)
    except PolicyError as refused:
        check(refused)
        return None
    neat = format_policy(text)
    assert parse_policy(neat, methods) == policy
    assert format_policy(neat) == neat
    return policy


@many
@given(text=st.text(max_size=200))
def test_any_text(text: str, methods: Methods) -> None:
    answer(text, methods)


@many
@given(text=soup | lines)
def test_any_words_of_the_language(text: str, methods: Methods) -> None:
    answer(text, methods)


@many
@given(data=st.data())
def test_the_example_with_pieces_cut_and_moved(data: st.DataObject, example: str, methods: Methods) -> None:
    text = example
    for _ in range(data.draw(st.integers(1, 4))):
        cut, end = sorted((data.draw(st.integers(0, len(text))), data.draw(st.integers(0, len(text)))))
        at = data.draw(st.integers(0, len(text)))
        text = data.draw(st.sampled_from([text[:cut] + text[end:], text[:at] + text[cut:end] + text[at:]]))
    answer(text, methods)


@many
@given(content=st.binary(max_size=200))
def test_any_bytes(content: bytes, methods: Methods, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "fuzz.tersor"
    path.write_bytes(content)
    try:
        read_policy(path, methods)
    except PolicyError as refused:
        check(refused)


@pytest.mark.parametrize(
    "text",
    [
        "keep " + "(" * 1_000_000,
        "for linear choose uniform(bits = " + "{" * 1_000_000,
        "keep " + "not " * 250_000 + "linear",
        "keep " + "not (" * 200_000,
        "keep " + "linear or " * 5_000 + "linear",
        "keep " + "linear " * 5_000,
        "recover { loss " + "f(a = " * 100_000,
        "recover { loss f(a = " + "g(" * 100_000,
        "(" * 1_000_000,
        ")" * 1_000_000,
        '"' * 1_000_000,
        "\\" * 1_000_000,
        "a." * 500_000,
        "*" * 1_000_000,
        "#" * 1_000_000,
        "\n" * 1_000_000,
        "keep x\n" * 4_000,
        "  keeq\n" * 4_000,
        "".join(f"let a{i} = a{i + 1}\n" for i in range(3_000)),
        "let a0 = all\n" + "".join(f"let a{i} = a{i - 1} or a{i - 1}\n" for i in range(1, 2_000)),
        "let a0 = all\n" + "".join(f"let a{i} = a{i - 1}\n" for i in range(1, 3_000)),
        "budget size <= " + "9" * 1_000_000 + " MB",
        "for linear choose uniform(bits = 1..1" + "0" * 38 + ")",
        "for linear choose svd(rank = 1%..100% step 1e-300%)",
        "budget latency <= 1e-320 ms",
        "budget size <= 1e-999999999999999999999 MB",
        'keep in "' + "**.a." * 100_000 + 'b"',
    ],
    ids=lambda text: text[:24].strip(),
)
def test_hostile_sizes(text: str, methods: Methods) -> None:
    """None of these may recurse without end, or take memory or time that grows faster than the text."""
    answer(text, methods)
