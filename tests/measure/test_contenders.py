"""Measured choices against whole runs of the model with the weights in it, and the damage of plans against the outputs
of the plan."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from tests.captured import captured
from tests.inputs import inputs_like
from tests.optimise.models import batches, tiny
from torch import Tensor, nn

from tersor import original
from tersor.compiler.measure.collect import Batch
from tersor.compiler.measure.price import Choice
from tersor.compiler.measure.resume import Resumable, with_weight
from tersor.compiler.measure.signal import SignalName
from tersor.compiler.pipeline import Planned, solve
from tersor.compiler.prepare import Prepared, prepare
from tersor.compiler.slots import slots
from tersor.compiler.stores import Store
from tersor.fidelity import Original
from tersor.passes import METHODS
from tersor.policies import Policy

RULES = "for linear or embedding choose uniform(bits = {2, 3, 4, 6}, group = row, rounding = compensated)\n"


def with_weights(prepared: Prepared, stores: Mapping[str, Store]) -> nn.Module:
    """A model of its own with some weights as they come out of their stores."""
    program = prepared.program
    sites = {site.name: site for site in program.sites}
    whole = copy.deepcopy(program.callable()).eval()
    for name, store in stores.items():
        for path, own in slots(program.module, sites[name]):
            getattr(whole.graph_module.get_submodule(path), own).data.copy_(store.dense())
    return whole


def measured(prepared: Prepared, stores: Mapping[str, Store], examples: list[Batch], signal: SignalName) -> float:
    """The divergence of a model with these stores, by running it."""
    first = Original(signal, copy.deepcopy(prepared.program.callable()).eval(), examples)
    return first.compared(with_weights(prepared, stores), "").mean


def ready(
    model: nn.Module, example: Mapping[str, Tensor], data: list[Batch], signal: SignalName | None = None
) -> Prepared:
    """With the weights alone: what kernels add is tested in `test_inputs`."""
    program = original.captured(model, example, share=True)
    return prepare(program, Policy.parse(RULES), METHODS, data, signal=signal, kernels=False)


def coded(prepared: Prepared, bits: int) -> dict[str, Choice]:
    """Every site with so many bits."""
    return {
        name: choice
        for name, site in prepared.measured.choices.items()
        for choice in site
        if f"bits = {bits}," in choice.text
    }


@pytest.mark.parametrize("name", ["bert", "albert", "gpt2", "t5", "lstm_tied", "gru_lm", "bilstm"])
def test_a_run_from_the_middle_is_a_whole_run(name: str) -> None:
    _, example, program = captured(name)
    sites = [s for s in program.sites if s.readers and s.kind in ("linear", "embedding", "recurrent")]
    places = [slots(program.module, site) for site in sites]
    runner = Resumable(program.module.eval(), [tuple(dict.fromkeys(slot.path for slot in found)) for found in places])
    inputs = inputs_like(example, 2, 7)
    given = program.callable().bind((), inputs)
    with torch.no_grad():
        before = runner.first([given[n] for n in program.signature.names])
        for a, b in zip(before, program.module(*[given[n] for n in program.signature.names]), strict=True):
            torch.testing.assert_close(a, b)
        for site, found in zip(sites, places, strict=True):
            weight = 1.1 * getattr(program.module.get_submodule(found[0].path), found[0].name).detach()
            leaves = {path: with_weight(program.module.get_submodule(path), own, weight) for path, own in found}
            after = runner.again(tuple(leaves), leaves)
            whole = copy.deepcopy(program.module)
            for path, own in found:
                getattr(whole.get_submodule(path), own).data.copy_(weight)
            for a, b in zip(after, whole(*[given[n] for n in program.signature.names]), strict=True):
                torch.testing.assert_close(a, b, msg=lambda text, site=site: f"{site.name}: {text}")
        again = program.module(*[given[n] for n in program.signature.names])  # and the weights are as they were
        assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))


@pytest.mark.parametrize("signal", ["embedding", "logits"])
def test_an_anchor_is_what_a_whole_run_measures(signal: SignalName) -> None:
    model, example = tiny()
    data = batches(2)  # so few that all of them are measured on
    prepared = ready(model, example, data, signal)
    contenders = prepared.contenders
    assert contenders is not None
    contenders.anchor(prepared.packed.of)
    middle, worst = contenders.anchors
    assert len(middle) == len(worst) == 3
    for anchor in (*middle.values(), *worst.values()):
        truth = measured(prepared, prepared.packed.of({anchor.site: anchor}), data, signal)
        # A cosine has the rounding of 32 bits; of logits the change is that of the divergence to second order.
        limit = {"abs": 2e-7} if signal == "embedding" else {"rel": 0.2}
        assert contenders.damage(anchor) == pytest.approx(truth, **limit)
    for name, scored in prepared.measured.choices.items():
        if name not in middle:
            continue
        judged = {c.text: c.damage for c in contenders.judged({name: scored})[name]}
        ratios = {c.text: judged[c.text] / c.damage for c in scored}
        ends = sorted((ratios[middle[name].text], ratios[worst[name].text]))
        assert all(ends[0] * 0.999 <= ratio <= ends[1] * 1.001 for ratio in ratios.values())
        assert ratios[min(scored, key=lambda c: c.damage).text] == pytest.approx(ratios[middle[name].text])


@pytest.mark.parametrize("size", [16_000, 20_000])
def test_the_damage_of_a_plan_is_nearer_to_the_truth_than_the_scores_are(size: int) -> None:
    model, example = tiny()
    data = batches()
    prepared = ready(model, example, data)
    found = solve(prepared, {"size": size}, "damage")
    assert isinstance(found, Planned)
    truth = measured(prepared, found.stores, data, "embedding")
    scored = {(c.site, c.text): c.damage for site in prepared.measured.choices.values() for c in site}
    scores = sum(scored[name, c.text] for name, c in found.allocation.chosen.items())
    assert found.plan.damage == pytest.approx(truth, rel=0.1)
    assert abs(found.plan.damage - truth) < abs(scores - truth)


class Twice(nn.Module):
    """Two layers that do the same, so that their errors add up where they are rounded alike."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)
        self.second.weight = nn.Parameter(self.first.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        one: Tensor = self.first(x)
        return one + self.second(x)


def test_what_two_sites_do_together_is_not_the_sum_of_what_they_do_alone() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Twice().eval()
        data = [{"x": torch.randn(4, 5, 32)} for _ in range(2)]
    prepared = ready(model, data[0], data)
    contenders = prepared.contenders
    assert contenders is not None
    plan = coded(prepared, 4)
    stores = prepared.packed.of(plan)
    contenders.anchor(prepared.packed.of)
    contenders.learn(plan, stores)
    truth = measured(prepared, stores, data, "embedding")
    alone = sum(contenders.damage(c) for c in plan.values())
    assert alone == pytest.approx(truth / 2, rel=0.02)
    assert contenders.together(plan) == pytest.approx(truth, rel=0.02)


def test_a_plan_does_not_depend_on_the_plans_before_it() -> None:
    model, example = tiny()
    prepared = ready(model, example, batches())
    contenders = prepared.contenders
    assert contenders is not None
    contenders.anchor(prepared.packed.of)
    plan = coded(prepared, 3)
    before = contenders.together(plan)
    used = contenders.fresh()

    def seen() -> dict[str, Choice]:
        return {name: replace(c, damage=used.damage(c)) for name, c in plan.items()}

    assert used.learn(seen(), prepared.packed.of(plan))
    assert not used.learn(seen(), {})  # all that matters is known
    assert used.together(plan) != before
    assert contenders.together(plan) == before == used.fresh().together(plan)
