"""Times of leaves: which calls there are, what is timed once, and how parts and copies are counted. A fake clock and
a fake engine stand in for the machine: no test depends on how fast it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tests import zoo
from torch import fx, nn

from tersor.compiler.capture import capture
from tersor.compiler.compressed import CompressedRecurrent
from tersor.compiler.measure import seconds as timed
from tersor.compiler.measure.calls import leaf_calls
from tersor.compiler.measure.clock import Remembered, Shape
from tersor.compiler.measure.damage import WeightError
from tersor.compiler.measure.pace import Pace
from tersor.compiler.measure.price import Measurements, measure
from tersor.compiler.measure.seconds import MEMORY, with_costs
from tersor.compiler.program import Program
from tersor.compiler.resolve import resolve
from tersor.dsl import parse_policy
from tersor.passes import METHODS
from tersor.timings import Timings


@dataclass
class Eager:
    """Plain torch, counting what it is asked for."""

    version: str = "test"
    emitted: list[fx.GraphModule] = field(default_factory=list)

    def emit(self, module: fx.GraphModule) -> fx.GraphModule:
        self.emitted.append(module)
        return module


def prepared(program: Program, text: str) -> Measurements:
    policy = parse_policy(text, {method.id: method for method in METHODS})
    return measure(program, resolve(program.sites, policy, METHODS), WeightError())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every leaf takes a second a call; the list has how many were timed together, a number a batch."""
    batches: list[int] = []

    def fake(self: Pace, runs: list[object], threads: int, seconds: float) -> list[float]:
        batches.append(len(runs))
        return [float(len(run())) for run in runs]  # type: ignore[operator]  # one second for each copy of the ring

    monkeypatch.setattr(Pace, "ratios", fake)
    monkeypatch.setattr(Pace, "unit", lambda self, threads: 1.0)
    return batches


def test_the_calls_of_every_leaf_are_those_of_the_model() -> None:
    program = capture(*zoo.bert(), check=False)
    calls = leaf_calls(program, Shape(3, 8))
    query = next(s.readers[0].path for s in program.sites if s.role == "attention.query" and s.kind == "linear")
    pooler = next(s.readers[0].path for s in program.sites if s.role == "head.pooler" and s.kind == "linear")
    assert [(c.form, c.times) for c in calls[query]] == [("float32[3, 8, 32]", 1)]
    assert [(c.form, c.times) for c in calls[pooler]] == [("float32[3, 32]", 1)]


def test_leaves_of_one_form_are_timed_once_and_never_again(counted: list[int]) -> None:
    program = capture(*zoo.bert(), check=False)
    measured = prepared(program, "for linear choose uniform(bits = {4, 8}, group = row)")
    known, shape = Remembered(), Shape(1, 8)
    found = with_costs(program, measured, [shape], Eager(), known, Pace())
    # three shapes of linears (the pooler's input has another), two choices each, which plain torch computes alike
    assert sum(counted) == len(known.known)
    for name, choices in found.choices.items():
        kind = next(s.kind for s in program.sites if s.name == name)
        for choice in choices:
            assert choice.costs[str(shape)] == (1.0 if kind in ("linear", "embedding") else 0.0), name
    counted.clear()
    again = with_costs(program, measured, [shape], Eager(), known, Pace())
    assert not counted
    assert again.choices == found.choices
    with_costs(program, measured, [shape], Eager("another version"), known, Pace())
    assert counted


class Rounding(Eager):
    """A leaf takes one second for its input, which the leaves that read it share, and one for itself: the fake clock
    counts outputs."""

    def emit(self, module: fx.GraphModule) -> fx.GraphModule:
        (outputs,) = module.graph.output_node().args
        inputs = module.graph.find_nodes(op="placeholder")
        module.graph.output_node().args = ((*outputs, *inputs),)  # type: ignore[misc]
        module.recompile()
        return super().emit(module)


def test_what_readers_of_one_value_share_is_told_apart(counted: list[int]) -> None:
    program = capture(*zoo.bert(), check=False)
    measured = prepared(program, "for linear choose uniform(bits = {4, 8}, activations = {64, row}) or half()")
    shape = str(Shape(1, 8))
    found = with_costs(program, measured, [Shape(1, 8)], Rounding(), Remembered(), Pace()).choices
    roles = {site.name: site.role for site in program.sites if site.kind == "linear" and len(site.shape) == 2}
    readers: dict[str, set[str]] = {}
    for name, role in roles.items():
        for choice in found[name]:
            assert choice.costs[shape] == 2.0
            rounds = choice.candidate is not None and choice.candidate.input_group is not None
            if rounds and role in ("attention.query", "attention.key", "attention.value"):
                assert choice.shared is not None
                assert choice.shared.costs == {shape: 1.0}
                readers.setdefault(choice.shared.key, set()).add(name)
            else:
                assert choice.shared is None  # the others read a value of their own, or do not round it
    assert [len(names) for names in readers.values()] == [3] * 4  # two layers, two ways to round
    query = next(name for name, role in roles.items() if role == "attention.query")
    assert len({c.shared.key for c in found[query] if c.shared}) == 2


def test_a_leaf_with_several_weights_is_shared_among_them(counted: list[int]) -> None:
    model, example = zoo.lstm_lm()
    program = capture(model, example, check=False)
    measured = prepared(program, "for recurrent where width > 1 choose uniform(bits = {4, 8}, group = row)")
    found = with_costs(program, measured, [Shape(1, 8)], Eager(), Remembered(), Pace())
    layers = {r.path for s in program.sites if s.kind == "recurrent" for r in s.readers}
    total = sum(found.choices[s.name][0].costs[str(Shape(1, 8))] for s in program.sites if s.kind == "recurrent")
    assert total == pytest.approx(len(layers))


class Unequal(Eager):
    """A recurrent layer takes as many seconds as its input's weights have bits, and ten times those of its states'."""

    def emit(self, module: fx.GraphModule) -> fx.GraphModule:
        leaf = module.get_submodule("leaf0_0")
        if isinstance(leaf, CompressedRecurrent):
            taken = {"weight_ih_l0": 1, "weight_hh_l0": 10}
            stores = {name: leaf.get_submodule(f"stored.{name}").template for name in taken}
            seconds = sum(times * stores[name].bits_per_code for name, times in taken.items())
            module.register_buffer("form", torch.zeros(seconds))  # forms that differ are told apart
            outputs = module.graph.output_node()
            outputs.args = (outputs.args[0] * seconds,)  # type: ignore[operator]
            module.recompile()
        return super().emit(module)


def test_the_weights_of_a_leaf_are_timed_one_by_one(counted: list[int]) -> None:
    program = capture(nn.LSTM(16, 24, batch_first=True), {"input": torch.rand(2, 8, 16)}, check=False)
    measured = prepared(program, "for recurrent where width > 1 choose uniform(bits = {2, 4, 8}, group = row)")
    found = with_costs(program, measured, [Shape(2, 8)], Unequal(), Remembered(), Pace()).choices
    total = 0.0
    for name, each in (("weight_ih_l0", 1), ("weight_hh_l0", 10)):
        low, middle, high = (found[name][i].costs[str(Shape(2, 8))] for i in range(3))
        assert (middle - low, high - middle) == pytest.approx((2 * each, 4 * each))
        total += middle
    assert total == pytest.approx(11 * 4)  # four bits are the form that stays


def test_what_is_timed_later_compares_with_what_was_timed_before(
    counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = capture(nn.LSTM(16, 24, batch_first=True), {"input": torch.rand(2, 8, 16)}, check=False)
    few = prepared(program, "for recurrent where width > 1 choose uniform(bits = 4, group = row)")
    more = prepared(program, "for recurrent where width > 1 choose uniform(bits = {2, 4, 8}, group = row)")
    shape, known = Shape(2, 8), Remembered()
    at_once = with_costs(program, more, [shape], Unequal(), Remembered(), Pace()).choices
    with_costs(program, few, [shape], Unequal(), known, Pace())
    undisturbed = Pace.ratios
    monkeypatch.setattr(Pace, "ratios", lambda *asked: [1.5 * ratio for ratio in undisturbed(*asked)])
    assert with_costs(program, more, [shape], Unequal(), known, Pace()).choices == at_once


def test_a_long_matrix_is_timed_by_its_part(counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timed.ROWS, "linear", 16)
    monkeypatch.setitem(timed.ROWS, "embedding", 16)
    module = nn.Sequential(nn.Embedding(64, 8), nn.Linear(8, 48))
    program = capture(module, {"input": torch.arange(60).reshape(2, 30)}, check=False)
    found = with_costs(
        program, prepared(program, "for linear choose half()"), [Shape(2, 30)], Eager(), Remembered(), Pace()
    )
    shape = str(Shape(2, 30))
    (table,), (linear,) = found.choices["0.weight"], found.choices["1.weight"]
    assert table.costs[shape] == 1.0
    assert linear.costs[shape] == 3.0
    assert table.costs[MEMORY] == 4 * 64 * 8
    assert 4 * 48 * 8 <= linear.costs[MEMORY] <= 4 * 48 * 9


def test_times_are_kept_for_other_processes_and_a_lost_file_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "timings.sqlite"
    Timings(path).put("a leaf", 0.25)
    assert Timings(path).get("a leaf") == 0.25
    assert Timings(path).get("another leaf") is None
    path.write_bytes(b"this is no database" * 100)
    damaged = Timings(path)
    assert damaged.get("a leaf") is None
    damaged.put("a leaf", 0.5)
    assert damaged.get("a leaf") == 0.5
