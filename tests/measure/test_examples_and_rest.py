"""Which examples are looked at, and what is said of the sites that no example reaches."""

from __future__ import annotations

from statistics import median

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.compiler.measure.collect import batch_size, by_example, limited
from tersor.compiler.measure.price import Choice, _judge_the_rest


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), examples=st.integers(1, 120))
def test_limited_spreads_evenly(sizes: list[int], examples: int) -> None:
    numbers = torch.arange(sum(sizes)).split(sizes)
    found = list(limited([{"a": n, "b": -n} for n in numbers], examples))
    taken = torch.cat([batch["a"] for batch in found])
    assert len(taken) == min(examples, sum(sizes)) == sum(map(batch_size, found))
    assert taken[0] == 0
    gaps = torch.cat([taken, torch.tensor([sum(sizes)])]).diff()
    assert int(gaps.min()) >= 1
    assert int(gaps.max() - gaps.min()) <= 1
    assert all(torch.equal(batch["b"], -batch["a"]) for batch in found)
    # What is taken of a batch stays together, and no batch is empty.
    home = torch.cat([torch.full((n,), i) for i, n in enumerate(sizes)])
    assert all(len(set(home[batch["a"]].tolist())) == 1 for batch in found)
    assert len(found) == len(set(home[taken].tolist()))


def choice(site: str, damage: float, error: float) -> Choice:
    return Choice(site, None, 100, damage, error)


def test_the_rest_is_as_sensitive_as_the_median_of_the_judged() -> None:
    judged = {
        "a": (choice("a", 2.0, 1.0), choice("a", 9.0, 3.0)),
        "b": (choice("b", 0.5, 0.5), choice("b", 0.0, 0.0), choice("b", 0.0, 0.1)),
        "c": (choice("c", 40.0, 1.0),),
    }
    hidden = {"x": (choice("x", -1.0, 0.2), choice("x", -1.0, 0.0)), "y": (choice("y", -1.0, 4.0),)}
    found = _judge_the_rest(judged | hidden)
    sensitivity = median([2.0, 3.0, 1.0, 40.0])  # a keep and a change that costs nothing say nothing
    assert {name: found[name] for name in judged} == judged
    assert [c.damage for c in found["x"]] == [pytest.approx(0.2 * sensitivity), 0.0]
    assert found["y"][0].damage == pytest.approx(4.0 * sensitivity)
    assert [(c.site, c.bytes, c.error) for c in found["x"]] == [(c.site, c.bytes, c.error) for c in hidden["x"]]


def test_with_nothing_judged_the_rest_is_its_weight_error() -> None:
    found = _judge_the_rest({"x": (choice("x", -1.0, 0.25),), "kept": (choice("kept", 0.0, 0.0),)})
    assert found["x"][0].damage == 0.25
    assert found["kept"][0].damage == 0.0


@pytest.mark.parametrize("shape", [(4, 6, 3), (24, 3), (8, 4, 3), (6, 4, 3)])
def test_examples_are_told_apart_however_the_tensor_is_laid_out(shape: tuple[int, ...]) -> None:
    """Batch-first, folded, and time-major with a length that the batch divides, or not."""
    example = {(4, 6, 3): 0, (24, 3): 0, (8, 4, 3): 1, (6, 4, 3): 1}[shape]
    number = torch.arange(4.0)
    if shape == (24, 3):
        tensor = number.repeat_interleave(6)[:, None].expand(shape)
    else:
        tensor = (number[:, None, None] if example == 0 else number[None, :, None]).expand(shape)
    found = by_example(tensor, 4, 1)
    assert found is not None
    assert torch.equal(found, number[:, None, None].expand_as(found))
