"""The rounding of inputs against the kernels' own reference, against whole runs of the model, and as a choice."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.optimise.models import batches, tiny
from torch import nn

import tersor
from tersor import original
from tersor.backend import BackendName
from tersor.backends.numba.linear import QuantizedLinear
from tersor.backends.numba.reference import quantize_activations
from tersor.compiler.allocate import Allocation, allocate
from tersor.compiler.measure.collect import Batch
from tersor.compiler.measure.inputs import rounded
from tersor.compiler.measure.price import Choice
from tersor.compiler.measure.signal import SIGNALS
from tersor.compiler.prepare import Prepared, prepare
from tersor.passes import METHODS
from tersor.policies import Policy

RULES = """
for linear choose uniform(bits = {4, 8}, group = row, rounding = compensated, activations = {32, row})
for embedding choose half()
"""


BACKENDS: tuple[BackendName, ...] = ("numba", "eager")


def ready(kernels: bool = True, rules: str = RULES) -> Prepared:
    model, example = tiny()
    program = original.captured(model, example, share=True)
    return prepare(program, Policy.parse(rules), METHODS, batches(4), kernels=kernels)


def chosen(prepared: Prepared, bits: int, activations: str) -> dict[str, Choice]:
    """Every linear with so many bits and such scales, everything else as it is."""
    found = {}
    for name, choices in prepared.measured.choices.items():
        for choice in choices:
            coded = f"bits = {bits}," in choice.text
            if not coded and "bits" in choice.text:
                continue
            if not coded or choice.text.endswith(f"activations = {activations})"):
                found[name] = choice
    return found


@torch.no_grad()
def moved(before: nn.Module, after: nn.Module, data: Sequence[Batch]) -> float:
    """Half the mean square by which the embedding moves: 1 - cosine, where a float cannot tell that from 1."""
    signal = SIGNALS["embedding"]
    views = [[signal.view([m(**batch)], batch).double() for m in (before, after)] for batch in data]
    return float(torch.cat([(b - a).square().sum(-1) for b, a in views]).mean()) / 2


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 150),
    group=st.sampled_from([0, 32, 64]),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e4]),
    seed=st.integers(0, 2**16),
)
def test_rounding_is_that_of_the_kernels(rows: int, columns: int, group: int, scale: float, seed: int) -> None:
    x = scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    span = group or columns
    padded = -(-columns // span) * span
    q, scales = quantize_activations(x, span, padded)
    wanted = (q.view(rows, -1, span) * scales.unsqueeze(-1)).reshape(rows, padded)[:, :columns]
    torch.testing.assert_close(rounded(x, group), wanted)


def test_what_rounding_does_is_what_a_whole_run_measures() -> None:
    prepared = ready()
    assert prepared.contenders is not None
    inputs = prepared.contenders.inputs
    inputs.measure()
    data = prepared.contenders.changes.batches
    for activations, group in (("32", 32), ("row", 0)):
        for choice in chosen(prepared, 4, activations).values():
            if choice.candidate is None or "uniform" not in choice.text:
                continue
            whole = copy.deepcopy(prepared.program.callable()).eval()
            leaf = whole.graph_module.get_submodule(choice.site.removesuffix(".weight"))
            leaf.register_forward_pre_hook(lambda _, args, g=group: (rounded(args[0], g),))
            truth = moved(tiny()[0], whole, data)
            assert inputs.damage(choice) == pytest.approx(truth, rel=0.01)


@pytest.mark.parametrize("activations", ["32", "row"])
@pytest.mark.parametrize("choice", ["{32, row}", "one"])
def test_the_damage_of_a_plan_has_what_its_kernels_add(activations: str, choice: str) -> None:
    rules = RULES if choice != "one" else RULES.replace("{32, row}", activations)
    prepared, weights = ready(rules=rules).contenders, ready(kernels=False).contenders
    assert prepared is not None
    assert weights is not None
    prepared.inputs.measure()
    assert len(prepared.inputs.found) == (1 if choice == "one" else 4)
    plan = chosen(ready(), 8, activations)
    policy = Policy.parse(RULES.replace("{4, 8}", "8").replace("{32, row}", activations))
    model, example = tiny()
    kernels, eager = (
        moved(model, tersor.compile(model, policy, example, batches(4), backend=backend).module, batches(4))
        for backend in BACKENDS
    )
    more = prepared.together(plan) - weights.together(plan)
    assert more == pytest.approx(kernels - eager, rel=0.1)
    assert more > eager  # it is most of the damage of 8 bits


def test_choices_of_the_same_weights_are_priced_and_measured_once() -> None:
    prepared = ready()
    contenders = prepared.contenders
    assert contenders is not None
    contenders.anchor(prepared.packed.of)
    for name, choices in prepared.measured.choices.items():
        by_weights: dict[str, list[Choice]] = {}
        for choice in choices:
            by_weights.setdefault(choice.weights, []).append(choice)
        for alike in by_weights.values():
            assert len(alike) == (2 if "uniform" in alike[0].text else 1), name
            assert len({c.damage for c in alike}) == len({c.error for c in alike}) == 1
    assert all("activations" not in weights for _, weights in contenders.known)


def test_a_wide_scale_is_taken_where_time_asks_for_it() -> None:
    prepared = ready()
    assert prepared.contenders is not None
    prepared.contenders.anchor(prepared.packed.of)

    def timed(choice: Choice) -> Choice:
        return replace(choice, costs={"seconds": 0.9 if choice.text.endswith("activations = row)") else 1.0})

    choices = {name: [timed(c) for c in site] for name, site in prepared.choices().items()}
    names = [name for name, site in choices.items() if len(site) > 1]
    total = float(len(choices))
    free, tight, least = (allocate(choices, {"seconds": limit}) for limit in (total, total - 0.05, total - 0.15))
    for found, wide in ((free, 0), (tight, 1), (least, 2)):
        assert isinstance(found, Allocation)
        assert sum(found.chosen[name].text.endswith("activations = row)") for name in names) == wide
    assert isinstance(tight, Allocation)
    (taken,) = (c for c in tight.chosen.values() if c.text.endswith("activations = row)"))
    more = {
        name: prepared.contenders.inputs.damage(chosen(prepared, 8, "row")[name])
        - prepared.contenders.inputs.damage(chosen(prepared, 8, "32")[name])
        for name in names
    }
    assert taken.site == min(more, key=lambda name: more[name])


@pytest.mark.parametrize(("said", "group"), [("", 64), (", activations = row", 0), (", activations = 32", 32)])
@pytest.mark.parametrize(
    "form", ["int8(symmetric = true{})", "uniform(bits = 4, group = row{})", "uniform(bits = 8, group = 32{})"]
)
def test_an_artifact_says_how_inputs_are_rounded(form: str, said: str, group: int, tmp_path: Any) -> None:
    model, example = tiny()
    policy = Policy.parse(f"for linear choose {form.format(said)}")
    tersor.compile(model, policy, example).save(tmp_path)
    graph: Any = tersor.load(tmp_path, "numba")
    linears = [m for m in graph.modules() if isinstance(m, QuantizedLinear)]
    assert [linear.layout.activation_group for linear in linears] == [
        min(group, 32) if "group = 32" in form else group
    ] * 2
    eager = tersor.load(tmp_path, "eager")
    with torch.no_grad():
        near = nn.functional.cosine_similarity(eager(**example).flatten(), graph(**example).flatten(), dim=0)
    assert float(near) > 0.999
